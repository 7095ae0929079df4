"""Checkpoints of RMSprop in Keras 3 and ``tf.keras``: read, continue in JAX, write back.

A checkpoint is a live model or optimizer, or a file: ``.keras``, ``.h5``, ``.weights.h5``, or the
prefix of a TensorFlow 2 checkpoint. Keras 3 may run on any of its backends.
"""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmsprop_jax.interop import (
    _convert,
    _files,
    _keras_hdf5,
    _keras_live,
    _keras_weights,
    _keras_zip,
    _tf2,
)
from rmsprop_jax.interop._checkpoint import Changes, Checkpoint
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf
from rmsprop_jax.interop._state import read_state

__all__ = ["load", "save"]

_HDF5 = b"\x89HDF\r\n\x1a\n"

_Opened = tuple[Checkpoint, Callable[[Changes], None]]
"""A checkpoint, and the function that writes changes into it."""


def load(
    source: Any,
    params: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    missing: str = "error",
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of Keras's RMSprop, to continue with `dialects.keras` or `dialects.tf_keras`.

    The rule of ``tf.keras`` up to TensorFlow 2.10, now ``tf_keras.optimizers.legacy``, is
    `dialects.tf_keras`; all others are `dialects.keras`.

    Args:
      source: A compiled model; a built optimizer of Keras 3; a ``LossScaleOptimizer`` around
        one; or a path:

        - a ``.keras`` file. If the model has custom layers, load it yourself and pass it;
        - an ``.h5`` file of a whole model, from Keras 3 or ``tf.keras``;
        - a ``.weights.h5`` file of Keras 3;
        - the prefix of a TensorFlow 2 checkpoint of the legacy optimizer, as
          ``model.save_weights`` of ``tf.keras`` and ``tf.train.Checkpoint`` write it.
      params: A tree with the structure, shapes and dtypes of the parameters to return.
        Its values are used only for leaves that begin anew.
      mapping: By the ``path`` of each variable that the optimizer trains, the `Leaf` of
        ``params`` that holds it; for other variables that you want, such as BatchNorm's moving
        averages, the path in ``Restored.buffers``. ``None`` maps every path to itself. The model's
        name at the start of all paths may be left out. A ``.weights.h5`` file numbers its
        variables: the second one of the layer "dense" is ``dense/1``, unless ``names`` are
        given. A TensorFlow 2 checkpoint has both ``layer_with_weights-0/kernel`` and
        ``dense/kernel``; use either.
      names: For a ``.weights.h5`` file: ``[v.path for v in model.trainable_variables]``. Needed
        only if the shapes do not show the order of the layers; an error then asks for them.
      missing: ``"fresh"`` begins new averages for leaves that the checkpoint lacks or has in
        another shape, and lists them in ``Restored.fresh``; ``"error"`` raises.
      **hyperparameters: Arguments of the dialect that replace the optimizer's. A file of
        weights holds only the learning rate, and a TensorFlow 2 checkpoint no ``epsilon``: pass
        what that run passed to its optimizer. Keras's schedules are not converted: pass an
        Optax schedule as ``learning_rate``. Without one, a live optimizer continues at the
        schedule's current rate, with a warning.

    Returns:
      A `Restored`. Its ``buffers`` are empty if ``source`` is an optimizer.

    Raises:
      ValueError: If the optimizer is not RMSprop, has no state or uses an option
        that the dialect does not have, an array is missing, not finite or of the wrong shape,
        or names do not match. The message names the variable, and the file.
      TypeError: If an array is not floating point, or real where ``params`` are complex
        or the other way round, or ``mapping`` is not a dictionary of `Leaf`.

    Example:
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from rmsprop_jax import interop
      >>> optimizer = keras.optimizers.RMSprop(0.01, momentum=0.9)
      >>> optimizer.build([keras.Variable([1.0, 2.0, 3.0], name="w")])
      >>> restored = interop.keras.load(optimizer, params={"w": jnp.zeros(3)})
      >>> print(restored.params["w"], restored.step)
      [1. 2. 3.] 0
    """
    with _files.errors_name(source):
        checkpoint, _ = _opened(source, params, mapping, names, hyperparameters)
        return _convert.load(checkpoint, params, mapping, missing)


def save(
    target: Any,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    names: Sequence[str] | None = None,
    step: int | None = None,
    buffers: Mapping[str, Any] | None = None,
) -> Any:
    """Writes parameters and state into a checkpoint, whose hyperparameters are kept.

    Args:
      target: A checkpoint that `load` accepts. The variables of a live one are assigned; files
        are replaced as a whole or not at all.
      params: The parameters.
      state: The state of the dialect.
      mapping: As in `load`.
      names: As in `load`.
      step: Steps taken, for Keras's ``iterations``. ``None`` reads it from the state, which
        keeps it only if the learning rate is a schedule or an average is in low precision.
      buffers: Other variables of the model to write, in the structure of ``Restored.buffers``.

    Returns:
      ``target``.

    Raises:
      ValueError, TypeError: As in `load`; also if ``state`` and ``target`` differ in
        whether they are centred or have momentum. Nothing is then assigned or written.
      OSError: If the file cannot be written; the old one is unchanged.

    Example:
      >>> import jax.numpy as jnp
      >>> import keras
      >>> from rmsprop_jax import interop
      >>> w = keras.Variable([1.0, 2.0, 3.0], name="w")
      >>> optimizer = keras.optimizers.RMSprop(0.01)
      >>> optimizer.build([w])
      >>> restored = interop.keras.load(optimizer, params={"w": jnp.zeros(3)})
      >>> params = {"w": restored.params["w"] + 1}
      >>> _ = interop.keras.save(optimizer, params, restored.state, step=100)
      >>> print(keras.ops.convert_to_numpy(w), int(optimizer.iterations))
      [2. 3. 4.] 100
    """
    with _files.errors_name(target):
        checkpoint, write = _opened(target, params, mapping, names, None, state)
        if buffers and not checkpoint.values.keys() - checkpoint.trained:
            raise ValueError("buffers: the target has none; pass the model, not its optimizer")
        changes = _convert.save(checkpoint, params, state, mapping, step=step, buffers=buffers)
        write(changes)
        return target


def _opened(
    source: Any,
    params: Any,
    mapping: Mapping[str, Leaf] | None,
    names: Sequence[str] | None,
    overrides: Mapping[str, Any] | None,
    state: Any = None,
) -> _Opened:
    """Opens any format. To save, ``overrides`` are None and ``state`` is given."""
    start = _start_of(source) if _files.is_path(source) else b""
    if start == _HDF5 and _has_only_weights(source):
        if overrides is None:
            # The file does not say which averages it has.
            found = read_state(state)
            momentum, centered = (0.9 if found["trace"] else 0.0), bool(found["mu"])
            overrides = {"learning_rate": 0.0, "momentum": momentum, "centered": centered}
        checkpoint, places = _keras_weights.read(source, params, mapping, names, overrides)
        return checkpoint, lambda changes: _keras_hdf5.write(source, places, changes)
    if names is not None:
        raise ValueError("names: only a .weights.h5 file needs them; all others hold the names")
    if start == _HDF5:
        checkpoint, places = _keras_hdf5.read(source, overrides)
        return checkpoint, lambda changes: _keras_hdf5.write(source, places, changes)
    if _files.is_path(source) and not start:
        checkpoint, places = _tf2.read(source, params, mapping, overrides)
        return checkpoint, lambda changes: _tf2.write(source, places, changes)
    model = _keras_zip.model_in(source) if start else source
    live = _keras_live.opened(model)

    def write(changes: Changes) -> None:
        _keras_live.write(live, changes)
        if start:
            _keras_zip.save_model(model, source)

    return _keras_live.read(live, overrides), write


def _start_of(path: str | os.PathLike) -> bytes:
    """The first bytes of a Keras file; none for a TensorFlow prefix."""
    name = os.fspath(path)
    if os.path.exists(os.path.join(name, "variables", "variables.index")):
        raise ValueError(f"it is a SavedModel: pass {os.path.join(name, 'variables', 'variables')}")
    if not os.path.isfile(name) and not name.endswith((".keras", ".h5", ".hdf5")):
        return b""
    with open(path, "rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5 or zipfile.is_zipfile(path):
        return start
    if name.endswith(".index") or ".data-" in name:
        return b""  # TensorFlow's reader rejects it, and names the prefix.
    raise ValueError("it is not a Keras file, neither .keras nor .h5, or it is damaged")


def _has_only_weights(path: str | os.PathLike) -> bool:
    with _keras_hdf5.opened(path) as file:
        return "model_weights" not in file
