"""Loads a checkpoint into parameters and optimizer state, and saves these back.

No framework is imported here: each framework's module reads its format into a `Checkpoint`, and
writes `Changes` into it.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax._trees import has_gradient
from rmsprop_jax.interop import _state
from rmsprop_jax.interop._checkpoint import Changes, Checkpoint, Group
from rmsprop_jax.interop._mapping import (
    Keys,
    Leaf,
    MappedKeys,
    check_fits,
    check_mapping,
    leaf_keys,
    leaves_of,
    listed,
    match_names,
    nested,
    shown,
    transposed_shape,
)
from rmsprop_jax.interop._records import (
    Record,
    cast,
    checked_array,
    checked_record,
    mean_square,
    negate_momentum,
    variance,
)

_FROZEN = "frozen"


class Restored(NamedTuple):
    """A run from another framework, ready to continue.

    Attributes:
      params: The parameters, in the structure and dtypes of those given.
      optimizer: The optimizer that the framework ran, as an Optax transformation.
      state: The state of ``optimizer``.
      step: Steps taken, the largest count of any parameter; ``None`` if the checkpoint does not
        hold it.
      hyperparameters: The arguments of ``optimizer``: one dictionary per parameter group.
        Only torch may have more than one group.
      buffers: The model's other arrays, such as BatchNorm's running mean and variance: NumPy
        arrays in a nested dictionary, at the paths in the mapping.
      fresh: The paths of the leaves whose averages begin anew, or whose values are those given in
        ``params``.
    """

    params: Any
    optimizer: optax.GradientTransformationExtraArgs
    state: optax.OptState
    step: int | None
    hyperparameters: tuple[dict[str, Any], ...]
    buffers: dict[str, Any] = {}  # noqa: RUF012
    fresh: tuple[str, ...] = ()


def load(
    checkpoint: Checkpoint, params: Any, mapping: Mapping[str, Leaf] | None, missing: str = "error"
) -> Restored:
    """Converts a checkpoint to a run that JAX can continue."""
    if missing not in ("error", "fresh"):
        raise ValueError(f'missing must be "error" or "fresh", got {missing!r}')
    may_be_missing, leaves, names = missing == "fresh", leaves_of(params), checkpoint.values
    trained = checkpoint.trained
    mapping = match_names(mapping, names, params, checkpoint.separator)
    mapped = check_mapping(mapping, names, trained, leaves, partial=may_be_missing)
    optimizer, records = optimizer_of(checkpoint.groups, mapped, leaves), _records(checkpoint)
    values, fields = {}, _state.no_fields()
    for name, keys in mapped.parameters.items():
        shape, value = np.shape(leaves[keys]), checkpoint.values[name]
        if may_be_missing and np.size(value) != math.prod(shape):
            continue
        check_fits(name, mapping[name], np.shape(value), shape)
        record = records.get(name) or Record(checked_array(name, value), None, None, None)
        values[keys] = mapping[name].to_jax(record.value, shape)
        _put(fields, keys, record, lambda x, name=name, shape=shape: mapping[name].to_jax(x, shape))
    kept = {keys for name, keys in mapped.parameters.items() if name not in trained} & {*values}
    fresh = [keys for keys in leaves if keys not in fields["nu"] and keys not in kept]
    if leaves and not values:
        raise ValueError(
            f"nothing in the checkpoint is mapped to params: it has {listed(names, 80)}, params "
            f"have {listed([*map(shown, leaves)], 80)}; pass a mapping"
        )
    if fresh and not may_be_missing and any(trained.values()):
        _raise_without_state(fresh, mapped)
    params = _with_values(params, values)
    like = optimizer.init(params) if fresh else jax.eval_shape(optimizer.init, params)
    step = checkpoint.step if any(trained.values()) else 0
    return Restored(
        params,
        optimizer,
        _state.fill_state(like, fields, step),
        step,
        tuple(group.hyperparameters for group in checkpoint.groups),
        buffers=nested(_buffers_to_jax(checkpoint, mapping, mapped)),
        fresh=tuple(map(shown, fresh)),
    )


def save(
    checkpoint: Checkpoint,
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf] | None,
    *,
    step: int | None,
    buffers: Mapping[str, Any] | None = None,
) -> Changes:
    """Converts parameters and state to the changes to write to a checkpoint."""
    state, leaves = getattr(state, "opt_state", state), leaves_of(params)
    names = checkpoint.values
    mapping = match_names(mapping, names, params, checkpoint.separator)
    mapped = check_mapping(mapping, names, checkpoint.trained, leaves)
    without_step, with_step = (
        optimizer_of(groups, mapped, leaves)
        for groups in (checkpoint.groups, [_with_step(g, state) for g in checkpoint.groups])
    )
    dialect = f"dialects.{checkpoint.groups[0].dialect.__name__}"
    _state.check_state(state, params, dialect, without_step, with_step)
    fields, changes = _state.read_state(state), Changes({}, {}, _state.resolve_step(state, step))
    group_of = {name: group for group in checkpoint.groups for name in group.names}
    for name, keys in mapped.parameters.items():
        record = _record_from_jax(name, keys, leaves[keys], fields, mapping[name], names[name])
        changes.values[name] = record.value
        if group := group_of.get(name):
            record = negate_momentum(record) if group.subtracts_momentum else record
            slots = group.slots.items()
            changes.states[name] = {slot: getattr(record, field) for field, slot in slots if slot}
    if buffers is not None:
        given = {leaf_keys(path): leaf for path, leaf in tree_leaves_with_path(buffers)}
        for name, keys in mapped.buffers.items():
            is_count = not jnp.issubdtype(np.asarray(names[name]).dtype, jnp.inexact)
            if keys in given or not is_count:  # Flax has no num_batches_tracked.
                changes.values[name] = _buffer_from_jax(
                    name, keys, given, mapping[name], names[name]
                )
    return changes


def optimizer_of(
    groups: Any, mapped: MappedKeys, leaves: Mapping[Keys, Any]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of all groups: one dialect, or ``optax.partition``.

    Parameters that the framework's optimizer does not train stay as they are. Leaves that are not
    in the checkpoint belong to the first group.
    """
    optimizers = [group.dialect(**group.hyperparameters) for group in groups]
    group_of = {name: str(i) for i, group in enumerate(groups) for name in group.names}
    label_of = {keys: group_of.get(name, _FROZEN) for name, keys in mapped.parameters.items()}
    labels = {keys: label_of.get(keys, "0") for keys in leaves}
    if len(optimizers) == 1 and _FROZEN not in labels.values():
        return optimizers[0]
    transforms: dict[Hashable, optax.GradientTransformation] = {_FROZEN: optax.set_to_zero()}
    transforms |= {str(i): optimizer for i, optimizer in enumerate(optimizers)}

    def label(path: KeyPath, leaf: Any) -> str:
        del leaf
        return labels.get(leaf_keys(path), _FROZEN)

    return optax.partition(transforms, lambda tree: tree_map_with_path(label, tree))


def _records(checkpoint: Checkpoint) -> dict[str, Record]:
    """{name: record} for the parameters that have a state; momentum has Optax's sign."""
    records = {}
    for group in checkpoint.groups:
        for name in group.names:
            if found := checkpoint.states.get(name):
                record = checked_record(name, checkpoint.values[name], found, group.slots)
                records[name] = negate_momentum(record) if group.subtracts_momentum else record
    return records


def _put(fields: _state.Fields, keys: Keys, record: Record, to_jax: Any) -> None:
    """Puts a parameter's averages into the fields of a state."""
    if record.square is None:
        return
    square = to_jax(record.square)
    mean, momentum = (None if x is None else to_jax(x) for x in record[2:])
    fields["nu"][keys], fields["mu"][keys], fields["trace"][keys] = square, mean, momentum
    fields["var"][keys] = None if mean is None else variance(square, mean)


def _raise_without_state(fresh: list[Keys], mapped: MappedKeys) -> None:
    name_of = {keys: name for name, keys in mapped.parameters.items()}
    raise ValueError(
        f"{listed([name_of[keys] for keys in fresh])} have no optimizer state: they were frozen or "
        'never received a gradient, or the checkpoint is incomplete. Pass missing="fresh" to begin '
        "their averages anew, or leave them out of params and the mapping"
    )


def _with_values(params: Any, values: Mapping[Keys, np.ndarray]) -> Any:
    """``params`` with other values, in their own dtypes."""

    def parameter(path: KeyPath, old: Any) -> Any:
        keys = leaf_keys(path)
        if not has_gradient(old):
            return old
        if keys in values:
            return jnp.asarray(cast(shown(keys), values[keys], jnp.result_type(old)))
        if isinstance(old, jax.ShapeDtypeStruct):
            raise TypeError(
                f"params: {shown(keys)} is not in the checkpoint and must be an array, got a shape"
            )
        return jnp.asarray(old)

    return tree_map_with_path(parameter, params)


def _buffers_to_jax(
    checkpoint: Checkpoint, mapping: Mapping[str, Leaf], mapped: MappedKeys
) -> dict[Keys, np.ndarray]:
    buffers = {}
    for name, keys in mapped.buffers.items():
        x, leaf = np.array(checkpoint.values[name]), mapping[name]
        buffers[keys] = leaf.to_jax(x, transposed_shape(name, leaf, x.shape))
    return buffers


def _buffer_from_jax(
    name: str, keys: Keys, given: Mapping[Keys, Any], leaf: Leaf, old: np.ndarray
) -> np.ndarray:
    if keys not in given:
        raise ValueError(
            f"buffers have no {shown(keys)!r}, which {name} is mapped to, only "
            f"{listed([shown(keys) for keys in given])}"
        )
    value = np.asarray(given[keys])
    if jnp.issubdtype(np.asarray(old).dtype, jnp.inexact):
        value = checked_array(f"buffers: {shown(keys)}", value)
    elif value.dtype.kind != np.asarray(old).dtype.kind:
        raise TypeError(
            f"buffers: {shown(keys)} must have the dtype of {name}, {np.asarray(old).dtype}, got "
            f"{value.dtype}"
        )
    check_fits(name, leaf, np.shape(old), value.shape)
    return leaf.from_jax(value, np.shape(old))


def _with_step(group: Group, state: Any) -> Group:
    """``group`` with options for which its optimizer keeps every step that ``state`` may keep."""
    rate_name = "lr" if "lr" in group.hyperparameters else "learning_rate"
    options = _state.options_that_count_steps(rate_name, state)
    return group._replace(hyperparameters={**group.hyperparameters, **options})


def _record_from_jax(
    name: str, keys: Keys, value: Any, fields: _state.Fields, leaf: Leaf, old: np.ndarray
) -> Record:
    """A parameter and its averages in the framework's layout, that of the array ``old``."""
    value = checked_array(f"params: {shown(keys)}", value)
    check_fits(name, leaf, np.shape(old), value.shape)
    square, mean, var, momentum = (
        _state.join_complex(fields[field], keys) for field in ("nu", "mu", "var", "trace")
    )
    if mean is not None and var is not None:
        square = mean_square(var, mean)
    for x in (square, mean, momentum):
        if x is not None and x.shape != value.shape:
            raise ValueError(
                f"state: averages of {shown(keys)} must have the shape {value.shape} of params, "
                f"got {x.shape}; pass the state of these params"
            )
    arrays: list[Any] = [
        None if x is None else leaf.from_jax(x, np.shape(old))
        for x in (value, square, mean, momentum)
    ]
    return Record(*arrays)
