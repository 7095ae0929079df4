"""Checkpoints of ``tf.compat.v1.train.RMSPropOptimizer``: read, go on in JAX, and write back.

A checkpoint is the prefix that ``tf.compat.v1.train.Saver`` has written, or a
dictionary of its variables in NumPy. It holds no hyperparameters: those are
arguments.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop import _state
from rmsprop_jax.interop._state import Place, Resumed

_HYPERPARAMETERS = ("learning_rate", "decay", "momentum", "epsilon", "centered")
_SLOT = "RMSProp"
_STEP = "global_step"


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    step: int | None = None,
    **hyperparameters: Any,
) -> Resumed:
    """A run of ``tf.compat.v1.train.RMSPropOptimizer``, to go on with `dialects.tensorflow_v1`.

    The slots of a variable ``w`` are ``w/RMSProp``, which averages squares, then, if
    the optimizer is centred, the average of gradients, and last the momentum, as
    ``w/RMSProp_1`` and ``w/RMSProp_2``.

    Args:
      source: The checkpoint's prefix, such as ``"run/model.ckpt-1000"``, or a dictionary
        {name: array} of its variables.
      params: A tree with the structure, shapes and dtypes that the parameters are to
        have. Its values are not used.
      mapping: For each variable that the optimizer trains, its place in ``params``.
        ``None``: ``net/w`` is at ``net/w``.
      step: Steps taken; ``None`` is the variable ``global_step``, if there is one.
      **hyperparameters: The arguments of `dialects.tensorflow_v1`, as the run had them.

    Returns:
      A `Resumed`.

    Raises:
      ValueError: If no variable has RMSprop's slots, a slot is missing or one too many,
        an array is not finite, or names do not match. The message names the variable.
      AssertionError: From chex, if an array has another shape than it should.

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import interop
      >>> checkpoint = {
      ...     "net/w": np.ones(3),
      ...     "net/w/RMSProp": np.full(3, 0.25),
      ...     "net/w/RMSProp_1": np.zeros(3),
      ...     "global_step": 7,
      ... }
      >>> resumed = interop.tensorflow_v1.load(
      ...     checkpoint, params={"net": {"w": np.zeros(3)}}, learning_rate=0.01, momentum=0.9
      ... )
      >>> resumed.step
      7
    """
    _state.check_names(hyperparameters, _HYPERPARAMETERS, "tf.compat.v1.train.RMSPropOptimizer")
    optimizer = dialects.tensorflow_v1(**hyperparameters)
    variables = _read(source)
    slots = _slots(hyperparameters.get("centered", False))
    keeps_momentum = hyperparameters.get("momentum", 0.0) > 0
    records = {}
    for name in _trained(variables):
        found = {key: variables[f"{name}/{key}"] for key in _found_slots(variables, name)}
        record = _state.turned(_state.checked_record(name, variables[name], found, slots))
        records[name] = record if keeps_momentum else record._replace(momentum=None)
    places = _state.matched(mapping, records, params)
    step = int(variables[_STEP]) if step is None and _STEP in variables else step
    if step is None and callable(hyperparameters["learning_rate"]):
        raise ValueError(f"step must be given: the checkpoint has no {_STEP} for the schedule")
    params, state = _state.resume(params, places, records, optimizer, step)
    return Resumed(params, optimizer, state, step, (hyperparameters,))


def save(
    target: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    state: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    step: int | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """The checkpoint ``target`` with these parameters and this state in the place of its own.

    Args:
      target: A prefix, which ``tf.compat.v1.train.Saver`` then writes anew, or a
        dictionary {name: array}: the checkpoint loaded, or one of a new graph.
      params: The parameters.
      state: The state of `dialects.tensorflow_v1`.
      mapping: As in `load`.
      step: Steps taken, for ``global_step`` if the checkpoint has it; ``None`` is what
        the state has counted, which it does only if the learning rate is a schedule.

    Returns:
      ``target``, if it is a prefix, or else a new dictionary.

    Raises:
      ValueError, AssertionError: As `load`; also if the state is centred and ``target``
        is not, or the other way round.
    """
    variables = _read(target)
    names = _trained(variables)
    shapes = {name: np.shape(variables[name]) for name in names}
    places = _state.matched(mapping, shapes, params)
    saved = dict(variables)
    for name, record in _state.records(params, state, places, shapes).items():
        # TensorFlow keeps a buffer also without momentum, and multiplies it by zero.
        buffer = np.zeros_like(record.square) if record.momentum is None else record.momentum
        record = _state.turned(record._replace(momentum=buffer))
        slots = _slots(centered=len(_found_slots(variables, name)) == 3)
        _state.check_fits(name, record, slots)
        saved[name] = record.value
        saved |= {f"{name}/{slot}": getattr(record, f) for f, slot in slots.items() if slot}
    if _STEP in variables:
        saved[_STEP] = np.array(_state.step_count(state, step))
    saved = {name: x.astype(np.asarray(variables[name]).dtype) for name, x in saved.items()}
    if isinstance(target, Mapping):
        return saved
    _write(saved, target)
    return target


def _read(source: Mapping[str, Any] | str | os.PathLike) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    import tensorflow as tf

    reader = tf.train.load_checkpoint(os.fspath(source))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _write(variables: Mapping[str, np.ndarray], prefix: str | os.PathLike) -> None:
    import tensorflow

    tf: Any = tensorflow.compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        written = {
            name: tf.Variable(tf.zeros(x.shape, x.dtype), name="variable")
            for name, x in variables.items()
        }
        for name, variable in written.items():
            variable.load(variables[name], session)
        saver = tf.train.Saver(written)
        saver.save(session, os.fspath(prefix), write_meta_graph=False, write_state=False)


def _trained(variables: Mapping[str, Any]) -> list[str]:
    suffix = f"/{_SLOT}"
    names = [name.removesuffix(suffix) for name in variables if name.endswith(suffix)]
    if not names:
        raise ValueError(
            f"not a tf.compat.v1.train.RMSPropOptimizer: no variable has a slot {_SLOT}; found "
            f"{sorted(variables)}"
        )
    for name in names:
        if name not in variables:
            raise ValueError(f"the checkpoint has {name}{suffix}, but no {name}")
    return names


def _found_slots(variables: Mapping[str, Any], name: str) -> list[str]:
    prefix = f"{name}/{_SLOT}"
    return [key.removeprefix(f"{name}/") for key in variables if key.startswith(prefix)]


def _slots(centered: bool) -> dict[str, str | None]:
    if centered:
        return {"square": _SLOT, "mean": f"{_SLOT}_1", "momentum": f"{_SLOT}_2"}
    return {"square": _SLOT, "mean": None, "momentum": f"{_SLOT}_1"}
