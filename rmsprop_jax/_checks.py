"""What bad input gets: an error that names the argument or the leaf, what came and what is allowed.

Everything is checked while a transformation is built or traced, so a compiled step
holds none of it. Values that are traced have no value yet and pass. `_transform` and
`_optimizer` ask for the checks, so this file stands before them.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from rmsprop_jax import _accumulator


def check_number(name: str, value: Any, *, below: float = math.inf, hint: str = "") -> None:
    """Raises unless ``value`` is a real scalar in ``[0, below)``, or a traced one."""
    allowed = f"a finite number >= 0{'' if math.isinf(below) else f' and < {below:g}'}{hint}"
    if callable(value):
        hint = "; a schedule of it takes optax.inject_hyperparams"
        raise TypeError(f"{name} must be {allowed}, got {value!r}{hint}")
    _check_scalar(name, value, allowed)
    if not isinstance(value, Tracer) and not 0 <= _as_jax_sees_it(value) < below:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def checked_learning_rate(name: str, value: Any) -> Any:
    """``value``, a number as above, or a schedule that checks what it returns."""
    if not callable(value):
        check_number(name, value, hint=", or a schedule")
        return value

    def schedule(count: Any) -> Any:
        rate = value(count)
        _check_scalar(f"{name}({count})", rate, "a number")
        return rate

    return schedule


def is_zero(value: Any) -> bool:
    """Whether ``value`` is zero for good; an array's value may be another at the next step."""
    return not isinstance(value, jax.Array) and bool(value == 0)


def check_flag(name: str, value: Any) -> None:
    """Raises unless ``value`` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_options(
    decay: Any,
    eps: Any,
    initial_scale: Any,
    eps_in_sqrt: Any,
    bias_correction: Any,
    accumulator_dtype: Any,
) -> None:
    """Raises unless these are what both kinds of averages need."""
    check_number("decay", decay, below=1)
    check_number("eps", eps)
    check_number("initial_scale", initial_scale)
    check_flag("eps_in_sqrt", eps_in_sqrt)
    check_flag("bias_correction", bias_correction)
    check_accumulator_dtype(accumulator_dtype)


def check_accumulator_dtype(dtype: Any) -> None:
    """Raises unless averages can be kept in ``dtype``; None leaves it to the parameters."""
    allowed = ["None", *(d.name for d in _accumulator.SUPPORTED_DTYPES)]
    if isinstance(dtype, np.ndarray | np.generic | jax.Array):
        raise TypeError(
            f"accumulator_dtype must be one of {allowed}, got an array; in "
            "optax.inject_hyperparams, static_args='accumulator_dtype' keeps a dtype as it is"
        )
    try:
        supported = dtype is None or jnp.dtype(dtype) in _accumulator.SUPPORTED_DTYPES
    except (TypeError, ValueError):
        supported = False
    if not supported:
        raise ValueError(f"accumulator_dtype must be one of {allowed}, got {dtype!r}")
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            "accumulator_dtype float64 needs jax.config.update('jax_enable_x64', True)"
        )


def check_momentum(momentum: Any, nesterov: Any) -> None:
    """Raises unless ``momentum`` is None or a number in [0, 1), as ``nesterov`` needs it to be."""
    check_flag("nesterov", nesterov)
    if momentum is not None:
        check_number("momentum", momentum, below=1)
    elif nesterov:
        raise ValueError("nesterov=True needs momentum, a number >= 0 and < 1; got None")


def check_step(step: Any) -> None:
    """Raises unless ``step`` is one whole number >= 0, or a traced one."""
    message = f"step must be a whole number >= 0, got {step!r}"
    is_number = isinstance(step, int | np.ndarray | np.generic | jax.Array)
    dtype: Any = getattr(step, "dtype", np.dtype(type(step)) if is_number else None)
    if not is_number or not jnp.issubdtype(dtype, np.integer):
        raise TypeError(message)
    if np.shape(step) != () or (not isinstance(step, Tracer) and int(step) < 0):
        raise ValueError(message)


def check_params_given(name: str, value: Any, params: Any) -> None:
    """Raises if ``params``, which the argument ``name`` needs, are missing."""
    if params is None:
        given = "a traced value" if isinstance(value, Tracer) else value
        hint = f"; to keep it a number in optax.inject_hyperparams, static_args={name!r}"
        raise ValueError(
            f"{name}={given} needs params, got None: call update(updates, state, params)"
            f"{hint if isinstance(value, jax.Array) else ''}"
        )


def check_leaves(name: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is real or complex floating point."""
    for path, leaf in tree_leaves_with_path(tree):
        if not _is_floating(leaf):
            given = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else repr(leaf)
            raise TypeError(
                f"{name}{keystr(path)} must be a floating-point array, got {given}; leave such "
                "leaves out, with optax.masked or equinox.filter(..., equinox.is_inexact_array)"
            )


def check_shapes(name: str, tree: Any, expected: Any, *, like: str) -> None:
    """Chex's AssertionError unless ``tree`` has the structure and shapes of ``expected``."""
    _check_like(name, tree, expected, like, describe=lambda leaf: str(jnp.shape(leaf)))


def check_shapes_and_dtypes(name: str, tree: Any, expected: Any, *, like: str) -> None:
    """Chex's AssertionError unless ``tree`` has also the dtypes of ``expected``."""
    _check_like(name, tree, expected, like, describe=_dtype_and_shape)


def _check_like(
    name: str, tree: Any, expected: Any, like: str, describe: Callable[[Any], str]
) -> None:
    check_structure(name, tree, expected, like)
    leaves = tree_leaves_with_path(tree)
    for (path, leaf), expected_leaf in zip(leaves, jax.tree.leaves(expected), strict=True):
        message = f"{name}{keystr(path)} must be as in {like}"
        chex.assert_equal(describe(leaf), describe(expected_leaf), custom_message=message)


def check_structure(name: str, tree: Any, expected: Any, like: str) -> None:
    """Chex's AssertionError unless ``tree`` has the structure of ``expected``."""
    if jax.tree.structure(tree) == jax.tree.structure(expected):
        return
    paths, expected_paths = (
        [keystr(path) for path, _ in tree_leaves_with_path(t)] for t in (tree, expected)
    )
    missing = ", ".join(path for path in expected_paths if path not in paths)
    extra = ", ".join(path for path in paths if path not in expected_paths)
    hint = "; accumulator_dtype and all other options must be those of init" * (name == "state")
    difference = (
        f"missing leaves: {missing or 'none'}; unexpected leaves: {extra or 'none'}{hint}"
        if missing or extra
        else "the leaves are the same, their containers differ"
    )
    chex.assert_trees_all_equal_structs(
        expected, tree, custom_message=f"{name} must be built as {like}: {difference}"
    )


def _check_scalar(name: str, value: Any, allowed: str) -> None:
    is_number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if not is_number or isinstance(value, bool) or not _is_real(value):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")


def _as_jax_sees_it(value: Any) -> np.ndarray:
    # A decay of 1 - 1e-9 is less than one, but one in float32; 10**400 is infinite.
    try:
        with np.errstate(over="ignore"):
            return np.asarray(float(value), jax.dtypes.canonicalize_dtype(float))
    except OverflowError:
        return np.asarray(math.inf)


def _is_real(value: Any) -> bool:
    dtype = getattr(value, "dtype", jnp.dtype(float))
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _is_floating(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float | complex)
    try:
        return jnp.issubdtype(leaf.dtype, jnp.inexact)
    except TypeError:  # another library's dtype
        return False


def _dtype_and_shape(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}{jnp.shape(leaf)}"
