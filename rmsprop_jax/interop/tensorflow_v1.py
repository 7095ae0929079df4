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
from rmsprop_jax.interop import _convert, _files, _records, _tensorflow_files
from rmsprop_jax.interop._checkpoint import Checkpoint, Group
from rmsprop_jax.interop._convert import Restored
from rmsprop_jax.interop._mapping import Leaf, listed
from rmsprop_jax.interop._state import checked_step, read_state, step_as

_STEP = "global_step"


def load(
    source: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    name: str = "RMSProp",
    step: int | None = None,
    missing: str = "error",
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
        Its values are used only for leaves that begin anew.
      mapping: For each variable that the optimizer trains, the `Leaf` of ``params`` that
        holds it; for other variables that you want, such as moving averages, the path in
        ``Restored.buffers``. ``None`` maps every name to itself.
      name: The optimizer's name, as in TensorFlow.
      step: Steps taken; ``None`` reads the variable ``global_step``, if there is one.
      missing: ``"fresh"`` begins new averages for leaves that the checkpoint lacks or has in
        another shape, and lists them in ``Restored.fresh``; ``"error"`` raises.
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
    with _files.errors_name(source):
        variables = source if isinstance(source, Mapping) else _tensorflow_files.read(source)
        options = _records.as_python_numbers(hyperparameters)
        dialects.tensorflow_v1(**options)  # Rejects bad values before `_slots` reads them.
        if step is None and _STEP in variables:
            step = checked_step(_STEP, variables[_STEP])
        elif step is not None:
            step = checked_step("step", step)
        elif callable(options["learning_rate"]):
            raise ValueError(
                "step must be given, the number of steps taken: learning_rate is a schedule, and "
                f"the checkpoint has no {_STEP}"
            )
        checkpoint, _ = _checkpoint(variables, name, options, step)
        return _convert.load(checkpoint, params, mapping, missing)


def save(
    target: Mapping[str, Any] | str | os.PathLike,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None = None,
    *,
    name: str = "RMSProp",
    step: int | None = None,
    buffers: Mapping[str, Any] | None = None,
) -> Mapping[str, Any] | str | os.PathLike:
    """Replaces the parameters and the optimizer state in a checkpoint.

    Args:
      target: A prefix, whose files are replaced as a whole or not at all, or a dictionary
        {name: array}: the checkpoint that was loaded, or that of a new graph.
      params: The parameters.
      state: The state of `dialects.tensorflow_v1`.
      mapping: As in `load`.
      name: As in `load`.
      step: Steps taken, for ``global_step`` if the checkpoint has it. ``None`` reads it from
        the state, which keeps it only if the learning rate is a schedule or an average is in
        low precision.
      buffers: Other variables to write, in the structure of ``Restored.buffers``.

    Returns:
      ``target`` if it is a prefix, otherwise a new dictionary.

    Raises:
      ValueError, TypeError: As in `load`; also if only one of ``state`` and ``target`` is
        centred.
      OSError: If the files cannot be written; the old ones are unchanged.
    """
    with _files.errors_name(target):
        variables = target if isinstance(target, Mapping) else _tensorflow_files.read(target)
        options = {
            "learning_rate": 0.0,
            "momentum": 0.9 if read_state(state)["trace"] else 0.0,
            "centered": all(len(keys) == 3 for keys in _trained(variables, name).values()),
        }
        checkpoint, trained = _checkpoint(variables, name, options, 0)
        if step is None and _STEP not in variables:
            step = 0
        changes = _convert.save(checkpoint, params, state, mapping, step=step, buffers=buffers)
        arrays = {**changes.values}
        for variable, slots in changes.states.items():
            for slot, x in slots.items():
                # TensorFlow keeps a buffer without momentum, too, and multiplies it by zero.
                arrays[trained[variable][slot]] = np.zeros(1) if x is None else x
        saved = dict(variables)
        for key, x in arrays.items():
            old = np.asarray(variables[key])
            saved[key] = _records.cast(key, np.broadcast_to(x, old.shape), old.dtype)
        if _STEP in variables:
            saved[_STEP] = step_as(changes.step, np.asarray(variables[_STEP]).dtype)
        if isinstance(target, Mapping):
            return saved
        _tensorflow_files.write(saved, target)
        return target


def _checkpoint(
    variables: Mapping[str, Any], name: str, options: dict[str, Any], step: int | None
) -> tuple[Checkpoint, dict[str, dict[str, str]]]:
    """The checkpoint, and {variable: {slot: its key in the checkpoint}}."""
    trained, slots = _trained(variables, name), _slots(name, options.get("centered", False))
    states = {
        variable: {slot: variables[key] for slot, key in keys.items()}
        for variable, keys in trained.items()
    }
    slot_keys = {key for keys in trained.values() for key in keys.values()}
    values = {
        key: np.asarray(x)
        for key, x in variables.items()
        if key not in slot_keys and key != _STEP and not _is_slot(key, variables)
    }
    group = Group(dialects.tensorflow_v1, options, list(trained), slots, subtracts_momentum=True)
    return Checkpoint(values, states, [group], step), trained


def _is_slot(key: str, variables: Mapping[str, Any]) -> bool:
    """Whether ``key`` is below a variable, as another optimizer's ``w/Adam`` is."""
    parts = key.split("/")
    return any("/".join(parts[:i]) in variables for i in range(1, len(parts)))


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
