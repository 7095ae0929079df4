"""Raises on bad input. The first line says what was given, what is allowed, and what to do.

The checks run while a transformation is built or traced; a compiled step contains none of them.
Traced numbers have no value yet, and pass. The keyword of an argument is its name in the message.

A bad value, shape or structure raises `ValueError`, an argument of the wrong kind `TypeError`.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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
    """Raises unless each is a real number in [0, 1), or a traced one, in at least float32."""
    for name, value in named.items():
        allowed = "a finite number >= 0 and < 1"
        dtype = getattr(value, "dtype", np.dtype(float))
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{name} must be {allowed}, in at least float32 (in bfloat16, 0.999 is 1); got "
                f"{shown(value)}; in optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32"
            )
        _number(name, value, allowed, lambda x: 0 <= x < 1)


def learning_rate(**named: Any) -> Any:
    """The value: a number, or the schedule with a check of what it returns."""
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
            f"({error}): if it makes a schedule, call it first"
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
            raise TypeError(f"{name} must be True or False, got {shown(value)}")


def at_most_one(**limits: Any) -> None:
    """Raises if more than one is given."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(limits)} may be given, got {given}")


def averages(**options: Any) -> dict[str, Any]:
    """The options of `scale_by_rms` and `scale_by_stddev`, as given; raises if one is bad."""
    fraction(decay=options["decay"])
    nonnegative(eps=options["eps"], initial_scale=options["initial_scale"])
    flag(eps_in_sqrt=options["eps_in_sqrt"], bias_correction=options["bias_correction"])
    accumulator_dtype(options["accumulator_dtype"])
    return options


def weight_decay(*, mask: Any = None, **named: Any) -> Any:
    """The value, None if it is zero; raises if it is bad, or if there is only a ``mask``."""
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
    """Raises unless averages can be kept in ``dtype``. None means the parameters' dtype."""
    allowed = ["None", *(d.name for d in _storage.FORMATS)]
    if isinstance(dtype, np.ndarray | np.generic | jax.Array):
        raise TypeError(
            f"accumulator_dtype must be one of {allowed}, got an array: optax.inject_hyperparams "
            "treats a dtype as a schedule; give its name, or static_args='accumulator_dtype'"
        )
    try:
        supported = dtype is None or jnp.dtype(dtype) in _storage.FORMATS
    except (TypeError, ValueError):
        supported = False
    if not supported:
        raise ValueError(f"accumulator_dtype must be one of {allowed}, got {shown(dtype)}")
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            "accumulator_dtype float64 needs jax.config.update('jax_enable_x64', True)"
        )


def is_zero(value: Any) -> bool:
    """Whether ``value`` is a static zero. An array may change between steps: it never counts."""
    return not isinstance(value, jax.Array) and bool(value == 0)


def mask(mask: Any) -> Any:
    """The mask; raises if it does not hold booleans, a function when it is called."""
    if callable(mask):
        return lambda tree: _booleans(mask(tree))
    return _booleans(mask)


def bad_prefix(mask: Any, tree: Any) -> ValueError:
    """The error for a mask that does not fit the gradients."""
    return ValueError(
        "mask must be True or False, or a tree of them like the gradients or a prefix of it; "
        f"got {shown(mask)} for {jax.tree.structure(tree)}"
    )


def _booleans(mask: Any) -> Any:
    if not all(isinstance(x, bool | np.bool_) for x in jax.tree.leaves(mask)):
        raise TypeError(
            "mask must be True or False, a tree of them like the parameters or a prefix of it, or "
            f"a function that returns one of these; got {shown(mask)}"
        )
    return mask


def step(step: Any, name: str = "step") -> None:
    """Raises unless ``step`` is one integer >= 0, or a traced one."""
    message = f"{name} must be a whole number >= 0, got {shown(step)}"
    is_number = isinstance(step, int | np.ndarray | np.generic | jax.Array)
    dtype: Any = getattr(step, "dtype", np.dtype(type(step)) if is_number else None)
    if not is_number or not jnp.issubdtype(dtype, np.integer):
        raise TypeError(message)
    if np.shape(step) != () or (not isinstance(step, Tracer) and int(step) < 0):
        raise ValueError(message)


def params_given(params: Any, **needed_by: Any) -> None:
    """Raises if ``params`` are missing but an argument needs them."""
    ((name, value),) = needed_by.items()
    if params is None:
        given = "a traced value" if isinstance(value, Tracer) else value
        raise ValueError(
            f"{name}={given} needs params, got None: call update(updates, state, params)"
        )


def _number(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    if callable(value):
        hint = "; use optax.inject_hyperparams for a schedule"
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}{hint}")
    is_number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if not is_number or isinstance(value, bool) or not _is_real(value):
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}")
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got an array of shape {np.shape(value)}")
    if not isinstance(value, Tracer) and not is_allowed(_as_jax_sees_it(value)):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")


def _as_jax_sees_it(value: Any) -> float:
    # A decay of 1 - 1e-9 is one in float32, and 10**400 is infinite.
    try:
        with np.errstate(over="ignore"):
            return float(np.asarray(float(value), jax.dtypes.canonicalize_dtype(float)))
    except OverflowError:
        return math.inf


def _is_real(value: Any) -> bool:
    dtype = getattr(value, "dtype", jnp.dtype(float))
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def shown(value: Any) -> str:
    """A value as one short line, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
