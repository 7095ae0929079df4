"""The ``.h5`` file of a whole model, from Keras 3 or tf.keras 2; neither is imported."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rmsprop_jax.interop._checkpoint import Changes, Checkpoint
from rmsprop_jax.interop._files import Source, replacing
from rmsprop_jax.interop._keras_parts import Places, group
from rmsprop_jax.interop._mapping import listed
from rmsprop_jax.interop._state import checked_step

_SLOTS = ("velocity", "average_gradient", "momentum")
_LEGACY_SLOTS = ("rms", "mg", "momentum")
_SCALARS = ("iteration", "iter", "learning_rate", "current_learning_rate")


@contextlib.contextmanager
def opened(path: Source) -> Iterator[Any]:
    """Opens the file for reading."""
    import h5py  # pyright: ignore[reportMissingImports]

    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"it is not a complete HDF5 file: {error}") from error
    with file:
        yield file


def read(path: Source, overrides: Mapping[str, Any] | None) -> tuple[Checkpoint, Places]:
    """The checkpoint in a file, and where its arrays are. To save, ``overrides`` are None."""
    with opened(path) as file:
        return _read(file, overrides)


def _read(file: Any, overrides: Mapping[str, Any] | None) -> tuple[Checkpoint, Places]:
    config = _optimizer_config(file)
    _reject_constraints(json.loads(file.attrs.get("model_config", "{}")))
    is_keras_3 = str(file.attrs.get("keras_version", "")).startswith("3")
    legacy = not is_keras_3 and "is_legacy_optimizer" not in config
    weights, averages = _weights(file["model_weights"]), file["optimizer_weights"]
    places = Places({name: f"model_weights/{key}" for name, key in weights.items()}, {}, "")
    for key in _names(averages, "weight_names"):
        owner = _owner(key, weights, is_keras_3, legacy)
        if owner is not None:
            places.slots.setdefault(owner[0], {})[owner[1]] = f"optimizer_weights/{key}"
        elif _without_number(key).rpartition("/")[2] in ("iteration", "iter"):
            places = places._replace(step=f"optimizer_weights/{key}")
        elif _without_number(key).rpartition("/")[2] not in _SCALARS:
            raise ValueError(
                f"the optimizer's {key} belongs to none of the weights {listed(weights)}"
            )
    if not places.step or not places.slots:
        raise ValueError("it holds no RMSprop state: its model had not taken a step")
    options = group(config, list(places.slots), overrides, legacy=legacy)
    return checkpoint_of(file, places, options), places


def checkpoint_of(file: Any, places: Places, group: Any) -> Checkpoint:
    """The arrays at ``places``, as a checkpoint of one group."""
    missing = [key for keys in places.slots.values() for key in keys.values() if key not in file]
    if missing := [*missing, *(key for key in places.values.values() if key not in file)]:
        raise ValueError(f"it is incomplete: it names {listed(missing)}, but does not hold them")
    values = {name: np.asarray(file[key]) for name, key in places.values.items()}
    states = {
        name: {slot: np.asarray(file[key]) for slot, key in keys.items()}
        for name, keys in places.slots.items()
    }
    step = checked_step("iteration", np.asarray(file[places.step]))
    return Checkpoint(values, states, [group], step)


def write(path: Source, places: Places, changes: Changes) -> None:
    """Replaces the file with a copy in which only the changed arrays differ."""
    import h5py  # pyright: ignore[reportMissingImports]

    with opened(path) as old:
        arrays = places.changed(changes, lambda key: old[key].dtype)
    with replacing(path) as [new]:
        shutil.copyfile(path, new)
        with h5py.File(new, "r+") as file:
            for key, x in arrays.items():
                file[key][...] = x  # pyright: ignore


def _optimizer_config(file: Any) -> dict[str, Any]:
    training = json.loads(file.attrs.get("training_config", "{}"))
    optimizer = training.get("optimizer_config")
    if not optimizer or "optimizer_weights" not in file:
        raise ValueError(
            "it holds no optimizer: the model was not compiled when it was saved, or "
            "include_optimizer was False"
        )
    kind = optimizer["class_name"]
    is_keras_2 = not str(file.attrs.get("keras_version", "")).startswith("3")
    if kind != "RMSprop" and not (is_keras_2 and kind == "Custom>RMSprop"):
        raise ValueError(f"not a keras.optimizers.RMSprop: its model was trained with {kind}")
    return optimizer["config"]


def _reject_constraints(model_config: Any, layer: str = "") -> None:
    """Raises if any layer has a constraint."""
    if isinstance(model_config, list):
        model_config = dict(enumerate(model_config))
    if not isinstance(model_config, Mapping):
        return
    layer = model_config.get("name", layer)
    for key, value in model_config.items():
        if str(key).endswith("_constraint") and value is not None:
            raise ValueError(
                f"{layer} has a {key}, which dialects.keras does not support; remove it"
            )
        _reject_constraints(value, layer)


def _weights(models: Any) -> dict[str, str]:
    """{name: key below ``model_weights``}, of all layers, without seeds and counters."""
    found = {}
    for layer in models:
        for key in _names(models[layer], "weight_names"):
            if _without_number(key) in found:
                raise ValueError(
                    f"two weights have the same path, {_without_number(key)}; give each its own"
                )
            if key not in models[layer] or models[layer][key].dtype.kind == "f":
                found[_without_number(key)] = f"{layer}/{key}"
    return found


def _owner(
    key: str, weights: Mapping[str, str], is_keras_3: bool, legacy: bool
) -> tuple[str, str] | None:
    """The weight that an average belongs to, and its slot."""
    name, found = _without_number(key), []
    for slot in _LEGACY_SLOTS if legacy else _SLOTS:
        if is_keras_3:
            flat = name.rpartition("/")[2]
            found += [(w, slot) for w in weights if flat == f"{w.replace('/', '_')}_{slot}"]
        else:
            tails = {w: f"/{w}/{slot}" if legacy else f"/{slot}/{w}" for w in weights}
            found += [(w, slot) for w, tail in tails.items() if f"/{name}".endswith(tail)]
    if is_keras_3 and len(found) > 1:
        raise ValueError(f"{key} could be an average of any of {listed([w for w, _ in found])}")
    # "inner/dense/kernel" ends with "dense/kernel", which may be a weight, too.
    return max(found, key=lambda pair: len(pair[0]), default=None)


def _without_number(key: str) -> str:
    return key.removesuffix(":0")


def _names(group: Any, attribute: str) -> Iterator[str]:
    """A list of names, which Keras splits into chunks if it is long."""
    undivided = [attribute] if attribute in group.attrs else []
    chunks = itertools.takewhile(
        group.attrs.__contains__, map(f"{attribute}{{}}".format, itertools.count())
    )
    for chunk in undivided or chunks:
        for name in group.attrs[chunk]:
            yield name.decode() if isinstance(name, bytes) else str(name)
