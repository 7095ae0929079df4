"""Reads the arrays of an optimizer's state by their parameters' keys, and fills a state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey, KeyPath, keystr, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax import _states, _validate
from rmsprop_jax.interop._mapping import Keys, leaf_keys, listed, shown
from rmsprop_jax.interop._records import cast, checked_array

_STEP_FIELDS = ("count", "step")
_FIELDS = (*_STEP_FIELDS, "mu", "nu", "trace", "var")

Fields = dict[str, dict[Keys, Any]]
"""The arrays of a state: {field: {keys of the parameter: array}}."""


def no_fields() -> Fields:
    """The fields of a state without arrays."""
    return {field: {} for field in _FIELDS}


def read_state(state: Any) -> Fields:
    """The arrays of a state, or of a train state's, with averages in at least float32."""
    state, fields = getattr(state, "opt_state", state), no_fields()
    for path, leaf in tree_leaves_with_path(_states.dequantize(state)):
        field, keys = _field_and_keys(path)
        is_step = field in _STEP_FIELDS
        name = f"state: {field} of {shown(keys)}"
        fields[field][keys] = np.array(leaf) if is_step else checked_array(name, leaf)
    return fields


def fill_state(like: Any, fields: Mapping[str, Mapping[Keys, Any]], step: int | None) -> Any:
    """A state like ``like`` with the arrays of ``fields``: the inverse of `read_state`.

    Arrays that ``fields`` lacks stay as in ``like``, which must then hold arrays.
    """

    def array(path: KeyPath, old: Any) -> Any:
        field, keys = _field_and_keys(path)
        if field in _STEP_FIELDS:
            return jnp.asarray(step_as(step or 0, old.dtype))
        x = _real_or_imaginary(fields[field], keys)
        return old if x is None else jnp.asarray(cast(f"{field} of {shown(keys)}", x, old.dtype))

    is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(like))
    wide = jax.eval_shape(_states.dequantize, like) if is_abstract else _states.dequantize(like)
    return _states.quantize(tree_map_with_path(array, wide), like)


def _real_or_imaginary(arrays: Mapping[Keys, Any], keys: Keys) -> np.ndarray | None:
    """The array at ``keys``, or the real or imaginary part of a complex one.

    ``optax.contrib.split_real_and_imaginary`` keeps the two parts at ``real`` and ``imaginary``
    below the parameter's own keys.
    """
    if keys in arrays or not keys:
        return arrays.get(keys)
    joined = arrays.get(keys[:-1])
    part_of: Callable[[Any], Any] | None = {"real": np.real, "imaginary": np.imag}.get(keys[-1])
    return part_of(joined) if part_of and joined is not None else None


def join_complex(arrays: Mapping[Keys, Any], keys: Keys) -> np.ndarray | None:
    """The array at ``keys``, joined if it is kept as two real ones; ``None`` if there is none."""
    real, imaginary = (arrays.get((*keys, part)) for part in ("real", "imaginary"))
    if keys in arrays or real is None or imaginary is None:
        return arrays.get(keys)
    return real + 1j * imaginary


def check_state(
    state: Any,
    params: Any,
    dialect: str,
    without_step: optax.GradientTransformation,
    with_step: optax.GradientTransformation,
) -> None:
    """Raises unless ``state`` is a state of ``dialect``.

    It must have all leaves of ``without_step``, in any dtype, and only leaves of ``with_step``, the
    optimizer built with `options_that_count_steps`.
    """

    def leaves(tree: Any) -> dict[Keys, str]:
        return {leaf_keys(path): keystr(path) for path, _ in tree_leaves_with_path(tree)}

    found = leaves(_states.dequantize(state))
    least, most = (leaves(jax.eval_shape(o.init, params)) for o in (without_step, with_step))
    missing = [path for keys, path in least.items() if keys not in found]
    unexpected = [path for keys, path in found.items() if keys not in most]
    if missing or unexpected:
        missing_text = listed(sorted(missing), room=85)
        unexpected_text = listed(sorted(unexpected), room=170 - len(missing_text))
        raise ValueError(
            f"state is not of {dialect} with the target's centered and momentum: "
            f"missing {missing_text}, unexpected {unexpected_text}"
        )


def options_that_count_steps(rate_name: str, state: Any) -> dict[str, Any]:
    """Hyperparameters for which a dialect keeps every step that ``state`` may keep.

    These are a schedule, as the argument ``rate_name``, and low-precision averages if ``state``
    has any.
    """
    leaves = jax.tree.leaves(state, is_leaf=_states.is_quantized)
    is_low_precision = any(_states.is_quantized(x) or x.dtype == jnp.bfloat16 for x in leaves)
    return {
        rate_name: lambda _: 0.0,
        "accumulator_dtype": jnp.bfloat16 if is_low_precision else None,
    }


def step_in(fields: Mapping[str, Mapping[Keys, Any]]) -> int | None:
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
    return checked_step("step", step)


def checked_step(name: str, step: Any) -> int:
    """A step as an integer; it must be a whole number >= 0, of any array or float type."""
    number = np.asarray(step)
    if number.dtype.kind == "f" and number.shape == () and float(number).is_integer():
        return checked_step(name, int(number))
    _validate.step(step, name)
    return int(number)


def step_as(step: int, dtype: Any) -> np.ndarray:
    """A step in an integer dtype, which must be able to hold it."""
    if step > (most := jnp.iinfo(dtype).max):
        raise ValueError(f"step must be at most {most}, the largest {dtype}, got {step}")
    return np.array(step, dtype)


def _field_and_keys(path: KeyPath) -> tuple[str, Keys]:
    """The field of a state that a leaf belongs to, and the keys of its parameter."""
    # The state's own fields come first: parameters may have the same names.
    for i, key in enumerate(path):
        if isinstance(key, GetAttrKey) and key.name in _FIELDS:
            return key.name, leaf_keys(path[i + 1 :])
    raise ValueError(
        f"state{keystr(path)} is not part of an RMSprop state: it is in none of the fields "
        f"{', '.join(_FIELDS)}"
    )
