"""The ``.keras`` file of a compiled model, which Keras itself reads and writes."""

import io
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

from rmsprop_jax.interop._files import Source, replacing
from rmsprop_jax.interop._mapping import listed


def model_in(path: Source) -> Any:
    """The model, with the optimizer as it was saved.

    If an optimizer's arrays do not fit, Keras gives it a fresh state; a model that was compiled
    without an optimizer gets a new RMSprop. Neither is the saved run, so both raise here.
    """
    with zipfile.ZipFile(path) as file:
        if not {"config.json", "metadata.json", "model.weights.h5"} <= {*file.namelist()}:
            raise ValueError(f"it is not a .keras file, but a zip of {listed(file.namelist())}")
        _check_optimizer(json.loads(file.read("config.json")).get("compile_config") or {})
        version = json.loads(file.read("metadata.json")).get("keras_version", "")
        count = _arrays_of_optimizer(file.read("model.weights.h5"))
    if not count:
        raise ValueError("it holds no optimizer state, only the model's; save the model as .h5")
    model = _loaded(path, version)
    expected = len(model.optimizer.variables)
    if count != expected:
        raise ValueError(
            f"the file has {count} optimizer arrays, but the RMSprop in its configuration has "
            f"{expected}: it is damaged, or belongs to another optimizer"
        )
    return model


def save_model(model: Any, path: Source) -> None:
    """Replaces the file."""
    with replacing(path) as [new]:
        # Keras requires the suffix, which the target of a symbolic link may not have.
        unfinished = new.with_name(f"{new.name}.keras")
        model.save(unfinished)
        os.replace(unfinished, new)


def _check_optimizer(compile_config: Mapping[str, Any]) -> None:
    optimizer = compile_config.get("optimizer")
    if not optimizer:
        raise ValueError(
            "it names no optimizer: its model was not compiled when it was saved, or it had been "
            "saved as .h5 before, and Keras 3 then leaves the optimizer out; pass that .h5"
        )
    kind = optimizer if isinstance(optimizer, Mapping) else {"class_name": optimizer}
    if kind.get("class_name") == "LossScaleOptimizer":
        kind = kind["config"]["inner_optimizer"]
    module = kind.get("module") or "keras"
    if kind.get("class_name") != "RMSprop" or not module.startswith("keras"):
        raise ValueError(
            f"not a keras.optimizers.RMSprop: its model was trained with {kind.get('class_name')}"
        )


def _arrays_of_optimizer(weights: bytes) -> int:
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(io.BytesIO(weights)) as file:
        found: Any = file.get("optimizer/vars", ())
        return len(found)


def _loaded(path: Source, version: str) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if version.startswith("2."):
                import tf_keras  # pyright: ignore[reportMissingImports]

                model: Any = tf_keras.models.load_model(path)
            else:
                import keras

                saving: Any = keras.saving  # pyright: ignore[reportAttributeAccessIssue]
                model = saving.load_model(path)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(
                f"Keras could not load it: {reason}. If the model has custom layers, load it "
                "yourself and pass the model"
            ) from error
    for warning in caught:
        text = str(warning.message)
        if "kipping" in text or "could not be loaded" in text:
            raise ValueError(f"Keras could not load all of it: {text[:300]}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model
