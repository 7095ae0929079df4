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

_STEP = "global_step"


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Place] | None = None,
    *,
    name: str = "RMSProp",
    step: int | None = None,
    **hyperparameters: Any,
) -> Resumed:
    """A run of ``tf.compat.v1.train.RMSPropOptimizer``, to go on with `dialects.tensorflow_v1`.

    The slots of a variable ``w`` are ``w/RMSProp``, which averages squares, then, if
    the optimizer is centred, the average of gradients, and last the momentum, as
    ``w/RMSProp_1`` and ``w/RMSProp_2``; all in the scope in which the optimizer was
    made, if there was one: ``train/w/RMSProp``.

    Args:
      source: The checkpoint's prefix, such as ``"run/model.ckpt-1000"``, or a dictionary
        {name: array} of its variables.
      params: A tree with the structure, shapes and dtypes that the parameters are to
        have. Its values are not used.
      mapping: For each variable that the optimizer trains, its place in ``params``.
        ``None``: ``net/w`` is at ``net/w``.
      name: The optimizer's name, as in TensorFlow.
      step: Steps taken; ``None`` is the variable ``global_step``, if there is one.
      **hyperparameters: The arguments of `dialects.tensorflow_v1`, as the run had them.
        The checkpoint shows only if ``centered`` is wrong: TensorFlow keeps a momentum
        buffer in any case, and without ``momentum`` it is left behind.

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
    hyperparameters = _state.plain(hyperparameters)
    optimizer = dialects.tensorflow_v1(**hyperparameters)
    variables = _read(source)
    slots = _slots(name, hyperparameters.get("centered", False))
    records = {}
    for variable, keys in _trained(variables, name).items():
        found = {slot: variables[key] for slot, key in keys.items()}
        record = _state.checked_record(variable, variables[variable], found, slots)
        records[variable] = _state.turned(record)
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
    name: str = "RMSProp",
    step: int | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """The checkpoint ``target`` with these parameters and this state in the place of its own.

    Args:
      target: A prefix, which ``tf.compat.v1.train.Saver`` then writes anew, or a
        dictionary {name: array}: the checkpoint loaded, or one of a new graph.
      params: The parameters.
      state: The state of `dialects.tensorflow_v1`.
      mapping: As in `load`.
      name: As in `load`.
      step: Steps taken, for ``global_step`` if the checkpoint has it; ``None`` is what
        the state has counted: only if the learning rate is a schedule or an average narrow.

    Returns:
      ``target``, if it is a prefix, or else a new dictionary.

    Raises:
      ValueError, AssertionError: As `load`; also if the state is centred and ``target``
        is not, or the other way round.
    """
    variables = _read(target)
    trained = _trained(variables, name)
    shapes = {variable: np.shape(variables[variable]) for variable in trained}
    places = _state.matched(mapping, shapes, params)
    centered = all(len(keys) == 3 for keys in trained.values())
    momentum = 0.9 if _state.read(state)["trace"] else 0.0
    options = {"learning_rate": 0.0, "momentum": momentum, "centered": centered}
    constant = dialects.tensorflow_v1(**options)
    counting = dialects.tensorflow_v1(**options | _state.counters("learning_rate", state))
    _state.check_state(state, params, "dialects.tensorflow_v1", constant, counting)
    saved = dict(variables)
    for variable, record in _state.records(params, state, places, shapes).items():
        # TensorFlow keeps a buffer also without momentum, and multiplies it by zero.
        buffer = np.zeros_like(record.square) if record.momentum is None else record.momentum
        record = _state.turned(record._replace(momentum=buffer))
        arrays = {variable: record.value} | {
            trained[variable][slot]: getattr(record, field)
            for field, slot in _slots(name, centered).items()
            if slot is not None
        }
        for key, x in arrays.items():
            saved[key] = _state.cast(key, x, np.asarray(variables[key]).dtype)
    if _STEP in variables:
        step = _state.step_count(state, step)
        saved[_STEP] = np.array(step, np.asarray(variables[_STEP]).dtype)
    if isinstance(target, Mapping):
        return saved
    _write(saved, target)
    return target


def _read(source: Mapping[str, Any] | str | os.PathLike) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    import tensorflow as tf

    if os.path.isdir(source):
        latest = tf.train.latest_checkpoint(os.fspath(source))
        raise ValueError(
            f"{os.fspath(source)} is a folder: give a checkpoint's prefix, as {latest}"
        )
    reader = tf.train.load_checkpoint(os.fspath(source))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _write(variables: Mapping[str, Any], prefix: str | os.PathLike) -> None:
    import tensorflow

    tf: Any = tensorflow.compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        arrays = {name: np.asarray(x) for name, x in variables.items()}
        # Fed and not constants, of which a graph may hold two gigabytes.
        written = {name: tf.Variable(tf.zeros(x.shape, x.dtype)) for name, x in arrays.items()}
        for name, variable in written.items():
            variable.load(arrays[name], session)
        saver = tf.train.Saver(written)
        saver.save(session, os.fspath(prefix), write_meta_graph=False, write_state=False)


def _trained(variables: Mapping[str, Any], name: str) -> dict[str, dict[str, str]]:
    """{variable: {slot: its name in the checkpoint}} of all variables with slots."""
    trained: dict[str, dict[str, str]] = {}
    for key in variables:
        path, _, slot = key.rpartition("/")
        if slot == name or slot.startswith(f"{name}_"):
            trained.setdefault(_variable(path, variables), {})[slot] = key
    if not trained:
        raise ValueError(
            f"not a tf.compat.v1.train.RMSPropOptimizer with name={name!r}: no variable has such "
            f"a slot; found {sorted(variables)}"
        )
    return trained


def _variable(path: str, variables: Mapping[str, Any]) -> str:
    """The variable with a slot at ``path``, which may begin with the optimizer's scope."""
    variable = path
    while variable not in variables:
        _, slash, variable = variable.partition("/")
        if not slash:
            raise ValueError(f"the checkpoint has slots of {path}, but no such variable")
    return variable


def _slots(name: str, centered: bool) -> dict[str, str | None]:
    if centered:
        return {"square": name, "mean": f"{name}_1", "momentum": f"{name}_2"}
    return {"square": name, "mean": None, "momentum": f"{name}_1"}
