"""What bad input gets: an error whose first line says what came, what is allowed, and what to do.

All is checked while a transformation is built or traced, so a compiled step holds none of it.
Traced numbers have no value yet, and pass. A value's name is the keyword it was given under.

`ValueError` for a value, a shape or a structure, `TypeError` for a kind.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from rmsprop_jax import _storage


def finite(**named: Any) -> None:
    """Raises unless each is a finite real number, or a traced one."""
    for name, value in named.items():
        _number(name, value, "a finite number", math.isfinite)


def nonnegative(**named: Any) -> None:
    """Raises unless each is a finite real number >= 0, or a traced one."""
    for name, value in named.items():
        _number(name, value, "a finite number >= 0", lambda x: 0 <= x < math.inf)


def fraction(**named: Any) -> None:
    """Raises unless each is a real number in [0, 1), or a traced one, in at least 32 bits."""
    for name, value in named.items():
        allowed = "a finite number >= 0 and < 1"
        dtype = getattr(value, "dtype", np.dtype(float))
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{name} must be {allowed}, in at least float32 (bfloat16 makes 1 of 0.999); got "
                f"{value!r}; in optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32"
            )
        _number(name, value, allowed, lambda x: 0 <= x < 1)


def learning_rate(**named: Any) -> Any:
    """The value: a number, or a schedule that from now on checks what it returns."""
    ((name, value),) = named.items()
    if not callable(value):
        _number(name, value, "a finite number, or a schedule", math.isfinite)
        return value
    try:
        inspect.signature(value).bind(0)
    except TypeError as error:
        given = getattr(value, "__name__", repr(value))
        raise TypeError(
            f"{name} must be a number, or a schedule: a function of the step alone; got {given} "
            f"({error}): call it first if it makes a schedule"
        ) from None
    except ValueError:
        pass  # some functions have no signature

    def schedule(step: Any) -> Any:
        rate = value(step)
        _number(f"{name}(step)", rate, "a finite number", math.isfinite)
        return rate

    return schedule


def flag(**named: Any) -> None:
    """Raises unless each is True or False."""
    for name, value in named.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def averages(**options: Any) -> dict[str, Any]:
    """The options of `scale_by_rms` and `scale_by_stddev`, as given; raises if one is bad."""
    fraction(decay=options["decay"])
    nonnegative(eps=options["eps"], initial_scale=options["initial_scale"])
    flag(eps_in_sqrt=options["eps_in_sqrt"], bias_correction=options["bias_correction"])
    accumulator_dtype(options["accumulator_dtype"])
    return options


def weight_decay(*, mask: Any = None, **named: Any) -> Any:
    """The value, None where nothing decays; raises if it is bad, or missing beside its ``mask``."""
    ((name, value),) = named.items()
    if value is not None:
        nonnegative(**named)
    elif mask is not None:
        raise ValueError(f"mask must come with {name}, a number >= 0; got None")
    return None if value is None or is_zero(value) else value


def momentum(*, momentum: Any, nesterov: Any) -> None:
    """Raises unless ``momentum`` is None or a number in [0, 1), which ``nesterov`` needs."""
    flag(nesterov=nesterov)
    if momentum is not None:
        fraction(momentum=momentum)
    elif nesterov:
        raise ValueError("nesterov=True needs momentum, a number >= 0 and < 1; got None")


def accumulator_dtype(dtype: Any) -> None:
    """Raises unless averages can be kept in ``dtype``; None leaves it to the parameters."""
    allowed = ["None", *(d.name for d in _storage.SUPPORTED_DTYPES)]
    if isinstance(dtype, np.ndarray | np.generic | jax.Array):
        raise TypeError(
            f"accumulator_dtype must be one of {allowed}, got an array; in "
            "optax.inject_hyperparams, static_args='accumulator_dtype' keeps a dtype as it is"
        )
    try:
        supported = dtype is None or jnp.dtype(dtype) in _storage.SUPPORTED_DTYPES
    except (TypeError, ValueError):
        supported = False
    if not supported:
        raise ValueError(f"accumulator_dtype must be one of {allowed}, got {dtype!r}")
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            "accumulator_dtype float64 needs jax.config.update('jax_enable_x64', True)"
        )


def is_zero(value: Any) -> bool:
    """Whether ``value`` is zero for good; an array's value may be another at the next step."""
    return not isinstance(value, jax.Array) and bool(value == 0)


def step(step: Any) -> None:
    """Raises unless ``step`` is one whole number >= 0, or a traced one."""
    message = f"step must be a whole number >= 0, got {step!r}"
    is_number = isinstance(step, int | np.ndarray | np.generic | jax.Array)
    dtype: Any = getattr(step, "dtype", np.dtype(type(step)) if is_number else None)
    if not is_number or not jnp.issubdtype(dtype, np.integer):
        raise TypeError(message)
    if np.shape(step) != () or (not isinstance(step, Tracer) and int(step) < 0):
        raise ValueError(message)


def params_given(params: Any, **needed_by: Any) -> None:
    """Raises if ``params``, which an argument needs, are missing."""
    ((name, value),) = needed_by.items()
    if params is None:
        given = "a traced value" if isinstance(value, Tracer) else value
        raise ValueError(
            f"{name}={given} needs params, got None: call update(updates, state, params)"
        )


def _number(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    if callable(value):
        hint = "; a schedule of it takes optax.inject_hyperparams"
        raise TypeError(f"{name} must be {allowed}, got {value!r}{hint}")
    is_number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if not is_number or isinstance(value, bool) or not _is_real(value):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")
    if not isinstance(value, Tracer) and not is_allowed(_as_jax_sees_it(value)):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _as_jax_sees_it(value: Any) -> float:
    # A decay of 1 - 1e-9 is less than one, but one in float32; 10**400 is infinite.
    try:
        with np.errstate(over="ignore"):
            return float(np.asarray(float(value), jax.dtypes.canonicalize_dtype(float)))
    except OverflowError:
        return math.inf


def _is_real(value: Any) -> bool:
    dtype = getattr(value, "dtype", jnp.dtype(float))
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def known_leaf(name: str, leaf: Any) -> None:
    """Raises if a leaf is another library's array, which JAX does not take for one."""
    dtype: Any = getattr(leaf, "dtype", None)
    try:
        jnp.issubdtype(dtype, jnp.inexact)
    except TypeError:
        raise TypeError(
            f"{name} must be a JAX or NumPy array, got {type(leaf).__name__} of dtype {dtype!r}: "
            "convert it with jnp.asarray"
        ) from None


def shape(name: str, leaf: Any, expected: Any, like: str) -> None:
    """Raises unless a leaf has the shape of ``expected``."""
    if jnp.shape(leaf) != jnp.shape(expected):
        raise ValueError(_other_shape(name, leaf, expected, like))


def _other_shape(name: str, leaf: Any, expected: Any, like: str) -> str:
    return f"{name} has shape {jnp.shape(leaf)}, it must have {jnp.shape(expected)} as {like} has"


def bad_gradient(path: str, g: Any, weight: Any, *, trained: bool) -> TypeError:
    """What to raise for what cannot be a gradient, or comes for a parameter that has none."""
    leaf = g if trained else weight
    kind = f"of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else repr(leaf)[:60]
    if trained:
        return TypeError(
            f"updates{path} must be a floating-point JAX or NumPy array, or None; got {kind}"
        )
    return TypeError(
        f"updates{path} is a gradient, but params{path} is {kind}, which is not trained: give "
        "None there, as equinox.filter_grad does, or leave it out by optax.masked"
    )


def bad_average(name: str, path: str, kept: Any, g: Any, dtype: Any, expected: Any) -> ValueError:
    """What to raise for an average that does not fit its gradient."""
    if kept is None:
        return ValueError(
            f"updates{path} is a gradient, but the state has no average for it: init saw no "
            "floating-point array there; give None as its gradient"
        )
    if g.shape != jnp.shape(kept):
        return ValueError(_other_shape(f"updates{path}", g, kept, f"{name}{path} in the state"))
    return ValueError(
        f"state: {name}{path} is {dtype}, it must be {expected}: accumulator_dtype must be that "
        "of init; to go on in another, cast the state"
    )


def same_structure(name: str, tree: Any, expected: Any, like: str, hint: str = "") -> None:
    """Raises unless ``tree`` has the structure of ``expected``."""
    if jax.tree.structure(tree) == jax.tree.structure(expected):
        return
    paths, expected_paths = (
        {keystr(path): None for path, _ in tree_leaves_with_path(t)} for t in (tree, expected)
    )
    missing = [path for path in expected_paths if path not in paths]
    extra = [path for path in paths if path not in expected_paths]
    difference = "the leaves are the same, their containers differ"
    if missing or extra:
        difference = f"missing leaves: {few(missing)}; unexpected leaves: {few(extra)}"
    raise ValueError(f"{name} must be built as {like}: {difference}{hint}")


def few(paths: list[str]) -> str:
    """The first of them, and how many more there are: a message for people."""
    shown = ", ".join(path if len(path) <= 40 else f"...{path[-37:]}" for path in paths[:3])
    return (shown or "none") + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
