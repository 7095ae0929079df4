"""Checkpoints of ``tf.compat.v1.train.RMSPropOptimizer``: read, continue in JAX, write back.

A checkpoint is the prefix of the files that ``tf.compat.v1.train.Saver`` has written, or a
dictionary of its variables as NumPy arrays. It does not hold hyperparameters; pass them
as arguments.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.interop import _convert, _records
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf, check_mapping, listed

_STEP = "global_step"


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    name: str = "RMSProp",
    step: int | None = None,
    **hyperparameters: Any,
) -> Restored:
    """Loads a run of ``tf.compat.v1.train.RMSPropOptimizer``, for `dialects.tensorflow_v1`.

    The slots of a variable ``w`` are ``w/RMSProp``, the average of squared gradients, then,
    if the optimizer is centred, the average of gradients, and last the momentum, named
    ``w/RMSProp_1`` and ``w/RMSProp_2``. If the optimizer was built in a scope, its name
    comes first: ``train/w/RMSProp``.

    Args:
      source: The checkpoint's prefix, such as ``"run/model.ckpt-1000"``, or a dictionary
        {name: array} of its variables.
      params: A tree with the structure, shapes and dtypes of the parameters to return.
        Its values are not used.
      mapping: For each variable that the optimizer trains, the `Leaf` of ``params`` that
        holds it. ``None`` maps every name to itself.
      name: The optimizer's name, as in TensorFlow.
      step: Steps taken; ``None`` reads the variable ``global_step``, if there is one.
      **hyperparameters: The arguments of `dialects.tensorflow_v1` in that run. Only a
        wrong ``centered`` can be detected: TensorFlow always keeps a momentum buffer,
        which is dropped here without ``momentum``.

    Returns:
      A `Restored`.

    Raises:
      ValueError: If no variable has RMSprop's slots, a slot is missing or unexpected, an
        array is not finite or has the wrong shape, or names do not match. The message
        names the variable.
      TypeError: If an array is not floating point, or real where ``params`` are complex
        or the other way round, or ``mapping`` is not a dictionary of `Leaf`.

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import interop
      >>> checkpoint = {
      ...     "net/w": np.ones(3),
      ...     "net/w/RMSProp": np.full(3, 0.25),
      ...     "net/w/RMSProp_1": np.zeros(3),
      ...     "global_step": 7,
      ... }
      >>> restored = interop.tensorflow_v1.load(
      ...     checkpoint, params={"net": {"w": np.zeros(3)}}, learning_rate=0.01, momentum=0.9
      ... )
      >>> restored.step
      7
    """
    hyperparameters = _records.as_python_numbers(hyperparameters)
    optimizer = dialects.tensorflow_v1(**hyperparameters)
    variables = _read(source)
    slots = _slots(name, hyperparameters.get("centered", False))
    records = {}
    for variable, keys in _trained(variables, name).items():
        found = {slot: variables[key] for slot, key in keys.items()}
        record = _records.checked_record(variable, variables[variable], found, slots)
        records[variable] = _records.negate_momentum(record)
    mapping = check_mapping(mapping, records, params)
    step = int(variables[_STEP]) if step is None and _STEP in variables else step
    if step is None and callable(hyperparameters["learning_rate"]):
        raise ValueError(
            "step must be given, the number of steps taken: learning_rate is a schedule, and the "
            f"checkpoint has no {_STEP}"
        )
    params, state = _convert.restore(params, mapping, records, optimizer, step)
    return Restored(params, optimizer, state, step, (hyperparameters,))


def save(
    target: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    name: str = "RMSProp",
    step: int | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """Replaces the parameters and the optimizer state in a checkpoint.

    Args:
      target: A prefix, whose files are overwritten by ``tf.compat.v1.train.Saver``, or a
        dictionary {name: array}: the checkpoint that was loaded, or that of a new graph.
      params: The parameters.
      state: The state of `dialects.tensorflow_v1`.
      mapping: As in `load`.
      name: As in `load`.
      step: Steps taken, for ``global_step`` if the checkpoint has it. ``None`` reads it from
        the state, which keeps it only if the learning rate is a schedule or an average is in
        low precision.

    Returns:
      ``target`` if it is a prefix, otherwise a new dictionary.

    Raises:
      ValueError, TypeError: As in `load`; also if only one of ``state`` and ``target`` is
        centred.
    """
    variables = _read(target)
    trained = _trained(variables, name)
    shapes = {variable: np.shape(variables[variable]) for variable in trained}
    mapping = check_mapping(mapping, shapes, params)
    centered = all(len(keys) == 3 for keys in trained.values())
    momentum = 0.9 if _convert.read_state(state)["trace"] else 0.0
    options = {"learning_rate": 0.0, "momentum": momentum, "centered": centered}
    without_step = dialects.tensorflow_v1(**options)
    with_step = dialects.tensorflow_v1(
        **options | _convert.options_that_count_steps("learning_rate", state)
    )
    _convert.check_state(state, params, "dialects.tensorflow_v1", without_step, with_step)
    saved = dict(variables)
    for variable, record in _convert.to_records(params, state, mapping, shapes).items():
        # TensorFlow keeps a buffer without momentum, too, and multiplies it by zero.
        buffer = np.zeros_like(record.square) if record.momentum is None else record.momentum
        record = _records.negate_momentum(record._replace(momentum=buffer))
        arrays = {variable: record.value} | {
            trained[variable][slot]: getattr(record, field)
            for field, slot in _slots(name, centered).items()
            if slot is not None
        }
        for key, x in arrays.items():
            saved[key] = _records.cast(key, x, np.asarray(variables[key]).dtype)
    if _STEP in variables:
        step = _convert.resolve_step(state, step)
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
            f"{os.fspath(source)} is a folder: pass the prefix of a checkpoint, such as {latest}"
        )
    reader = tf.train.load_checkpoint(os.fspath(source))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _write(variables: Mapping[str, Any], prefix: str | os.PathLike) -> None:
    import tensorflow

    tf: Any = tensorflow.compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        arrays = {name: np.asarray(x) for name, x in variables.items()}
        # Loaded through feeds: a graph can hold only two gigabytes of constants.
        written = {name: tf.Variable(tf.zeros(x.shape, x.dtype)) for name, x in arrays.items()}
        for name, variable in written.items():
            variable.load(arrays[name], session)
        saver = tf.train.Saver(written)
        saver.save(session, os.fspath(prefix), write_meta_graph=False, write_state=False)


def _trained(variables: Mapping[str, Any], name: str) -> dict[str, dict[str, str]]:
    """{variable: {slot: its key in the checkpoint}}, for all variables with slots."""
    trained: dict[str, dict[str, str]] = {}
    for key in variables:
        path, _, slot = key.rpartition("/")
        if slot == name or slot.startswith(f"{name}_"):
            trained.setdefault(_variable(path, variables), {})[slot] = key
    if not trained:
        raise ValueError(
            f"not a tf.compat.v1.train.RMSPropOptimizer with name={name!r}: no variable has a slot "
            f"of that name; found {listed(sorted(variables))}"
        )
    return trained


def _variable(path: str, variables: Mapping[str, Any]) -> str:
    """The variable whose slots are at ``path``, which may begin with the optimizer's scope."""
    variable = path
    while variable not in variables:
        _, slash, variable = variable.partition("/")
        if not slash:
            raise ValueError(
                f"the checkpoint has slots of {path}, but no such variable: save the variable too"
            )
    return variable


def _slots(name: str, centered: bool) -> dict[str, str | None]:
    if centered:
        return {"square": name, "mean": f"{name}_1", "momentum": f"{name}_2"}
    return {"square": name, "mean": None, "momentum": f"{name}_1"}
