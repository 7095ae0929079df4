"""Converts records to parameters and optimizer state, and back.

Each framework's module reads its checkpoint into one `Record` per parameter, in the
framework's names and layout. `restore` converts records to parameters and a state, and
`to_records` converts these back. No framework is imported here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax import _states, _validate
from rmsprop_jax.interop._mapping import Leaf, check_fits, leaf_path, listed
from rmsprop_jax.interop._records import Record, cast, checked_array, mean_square, variance

_STEP_FIELDS = ("count", "step")
_FIELDS = (*_STEP_FIELDS, "mu", "nu", "trace", "var")


class Restored(NamedTuple):
    """A run from another framework, ready to continue.

    Attributes:
      params: The parameters, in the structure and dtypes of those given.
      optimizer: The optimizer that the framework ran, as an Optax transformation.
      state: The state of ``optimizer``.
      step: Steps taken, the largest number that any parameter has; ``None`` if the
        checkpoint does not hold it.
      hyperparameters: The arguments of ``optimizer``: one dictionary per parameter group.
        Only torch may have more than one group.
    """

    params: Any
    optimizer: optax.GradientTransformationExtraArgs
    state: optax.OptState
    step: int | None
    hyperparameters: tuple[dict[str, Any], ...]


def restore(
    params: Any,
    mapping: Mapping[str, Leaf],
    records: Mapping[str, Record],
    optimizer: optax.GradientTransformationExtraArgs,
    step: int | None,
) -> tuple[Any, Any]:
    """Converts records to parameters like ``params`` and a state of ``optimizer``."""
    shapes = {leaf_path(keys): jnp.shape(leaf) for keys, leaf in tree_leaves_with_path(params)}
    fields: dict[str, dict[str, Any]] = {field: {} for field in ("value", *_FIELDS)}
    for name, leaf in mapping.items():
        shape = shapes[leaf.path]
        check_fits(name, leaf, records[name].value.shape, shape)
        arrays: list[Any] = [None if x is None else leaf.to_jax(x, shape) for x in records[name]]
        value, square, mean, momentum = arrays
        fields["value"][leaf.path] = value
        fields["nu"][leaf.path] = square
        fields["trace"][leaf.path] = momentum
        fields["mu"][leaf.path] = mean
        fields["var"][leaf.path] = None if mean is None else variance(square, mean)

    def parameter(keys: KeyPath, like: Any) -> jax.Array:
        x = fields["value"][leaf_path(keys)]
        return jnp.asarray(cast(leaf_path(keys), x, jnp.result_type(like)))

    state = fill_state(jax.eval_shape(optimizer.init, params), fields, step)
    return tree_map_with_path(parameter, params), state


def to_records(
    params: Any,
    state: Any,
    mapping: Mapping[str, Leaf],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Record]:
    """Converts parameters and state to records with a framework's names and ``shapes``."""
    leaves = {leaf_path(keys): leaf for keys, leaf in tree_leaves_with_path(params)}
    fields = read_state(state)

    def record(name: str, leaf: Leaf) -> Record:
        value = checked_array(f"params: {leaf.path}", leaves[leaf.path])
        check_fits(name, leaf, shapes[name], value.shape)
        square, mean, var, momentum = (
            join_complex(fields[field], leaf.path) for field in ("nu", "mu", "var", "trace")
        )
        if mean is not None and var is not None:
            square = mean_square(var, mean)
        for x in (square, mean, momentum):
            if x is not None and x.shape != value.shape:
                raise ValueError(
                    f"state: averages of {leaf.path} must have the shape {value.shape} of params, "
                    f"got {x.shape}; give the state of these params"
                )
        arrays: list[Any] = [
            None if x is None else leaf.from_jax(x, shapes[name])
            for x in (value, square, mean, momentum)
        ]
        return Record(*arrays)

    return {name: record(name, leaf) for name, leaf in mapping.items()}


def check_state(
    state: Any,
    params: Any,
    dialect: str,
    without_step: optax.GradientTransformation,
    with_step: optax.GradientTransformation,
) -> None:
    """Raises unless ``state`` is a state of ``dialect``.

    It must have all leaves of ``without_step``, in any storage dtype, and no others than those
    of ``with_step``, which was built with `options_that_count_steps`.
    """

    def leaves(tree: Any) -> set[str]:
        return {keystr(keys) for keys, _ in tree_leaves_with_path(tree)}

    state = _states.dequantize(state)

    least, most = (leaves(jax.eval_shape(o.init, params)) for o in (without_step, with_step))
    missing, unexpected = least - leaves(state), leaves(state) - most
    if missing or unexpected:
        missing_text = listed(sorted(missing), room=85)
        unexpected_text = listed(sorted(unexpected), room=170 - len(missing_text))
        raise ValueError(
            f"state is not of {dialect} with the target's centered and momentum: "
            f"missing {missing_text}, unexpected {unexpected_text}"
        )


def options_that_count_steps(rate_name: str, state: Any) -> dict[str, Any]:
    """Hyperparameters with which a dialect keeps every step that ``state`` may keep.

    These are a schedule, as the argument ``rate_name``, and low-precision averages if ``state``
    has any.
    """
    leaves = jax.tree.leaves(state, is_leaf=_states.is_quantized)
    low = any(_states.is_quantized(x) or x.dtype == jnp.bfloat16 for x in leaves)
    return {rate_name: lambda _: 0.0, "accumulator_dtype": jnp.bfloat16 if low else None}


def read_state(state: Any) -> dict[str, dict[str, Any]]:
    """The arrays of a state: {field: {path of the parameter: array}}."""
    fields: dict[str, dict[str, Any]] = {field: {} for field in _FIELDS}
    for keys, leaf in tree_leaves_with_path(_states.dequantize(state)):
        field, path = _field_and_path(keys)
        is_step = field in _STEP_FIELDS
        x = np.array(leaf) if is_step else checked_array(f"state: {field} of {path}", leaf)
        fields[field][path] = x
    return fields


def fill_state(state: Any, fields: Mapping[str, Mapping[str, Any]], step: int | None) -> Any:
    """A state like ``state`` with the arrays of ``fields``: the inverse of `read_state`."""

    def array(keys: KeyPath, like: Any) -> Any:
        field, path = _field_and_path(keys)
        if field in _STEP_FIELDS:
            return jnp.asarray(step or 0, like.dtype)
        x = real_or_imaginary(fields[field], path)
        return jnp.asarray(cast(f"{field} of {path}", x, like.dtype))

    wide = jax.eval_shape(_states.dequantize, state)
    return _states.quantize(tree_map_with_path(array, wide), state)


def real_or_imaginary(arrays: Mapping[str, Any], path: str) -> np.ndarray:
    """The array at ``path``, or the real or imaginary part of a complex one.

    ``optax.contrib.split_real_and_imaginary`` keeps the two parts at ``real`` and ``imaginary``
    below the parameter's path.
    """
    if path in arrays:
        return arrays[path]
    parent, _, part = path.rpartition("/")
    return {"real": np.real, "imaginary": np.imag}[part](arrays[parent])


def join_complex(arrays: Mapping[str, Any], path: str) -> np.ndarray | None:
    """The array at ``path``, joined if it is kept as two real ones; ``None`` if there is none."""
    real, imaginary = (arrays.get(f"{path}/{part}".strip("/")) for part in ("real", "imaginary"))
    if path in arrays or real is None or imaginary is None:
        return arrays.get(path)
    return real + 1j * imaginary


def step_in(fields: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The step in the fields of a state, as `read_state` returns them; ``None`` without one."""
    steps = (step for field in _STEP_FIELDS for step in fields[field].values())
    return next((int(step) for step in steps), None)


def resolve_step(state: Any, step: Any) -> int:
    """``step``, or if it is None the step that the state keeps."""
    step = step_in(read_state(state)) if step is None else step
    if step is None:
        raise ValueError(
            "step must be given, the number of steps taken: this state does not keep it, because "
            "the learning rate is constant and no average is in low precision"
        )
    _validate.step(step)
    return int(step)


def _field_and_path(keys: KeyPath) -> tuple[str, str]:
    """The field of a state that a leaf belongs to, and the path of its parameter."""
    # The state's own fields come first: parameters may have the same names.
    for i, key in enumerate(keys):
        if isinstance(key, GetAttrKey) and key.name in _FIELDS:
            return key.name, leaf_path(keys[i + 1 :])
    raise ValueError(
        f"state{keystr(keys)} is not part of an RMSprop state: it is in none of the fields "
        f"{', '.join(_FIELDS)}"
    )
