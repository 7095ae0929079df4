"""Which formats there are, and which one stores an average."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rmsprop_jax._numerics import at_least_float32
from rmsprop_jax._storage._float8 import Float8
from rmsprop_jax._storage._formats import Bfloat16, Cast, Scaled
from rmsprop_jax._storage._slots import Slot

# The formats that users may ask for, by dtype.
FORMATS: dict[jnp.dtype, Any] = {
    x.dtype: x for x in (Cast(jnp.float32), Cast(jnp.float64), Bfloat16(), Float8())
}


def format_of(dtype: Any) -> Any:
    """The format that stores an average in ``dtype``, which may be complex."""
    dtype = jnp.dtype(dtype)
    return FORMATS[dtype] if dtype in FORMATS else Cast(dtype)


def is_low_precision(dtype: DTypeLike | None) -> bool:
    """Whether averages in ``dtype`` are stochastically rounded, which needs the step."""
    return dtype is not None and format_of(dtype).rounded


def is_scaled(dtype: DTypeLike | None) -> bool:
    """Whether averages in ``dtype`` are codes, with one scale per leaf."""
    return dtype is not None and isinstance(format_of(dtype), Scaled)


def low_precision_dtypes() -> tuple[jnp.dtype, ...]:
    """The dtypes with stochastic rounding."""
    return tuple(dtype for dtype, format_ in FORMATS.items() if format_.rounded)


@functools.cache
def kept_dtype(
    dtype: DTypeLike, accumulator_dtype: DTypeLike | None, *, nonnegative: bool = False
) -> jnp.dtype:
    """The dtype in which an average is stored.

    Args:
      dtype: The parameter's dtype.
      accumulator_dtype: What the user asked for; ``None`` is the parameter's, at least float32.
        Complex averages are stored in at least complex64.
      nonnegative: Whether the average is never negative, and real for complex parameters too.
        Other averages are stored in bfloat16 if a format with scales is asked for.
    """
    wide = at_least_float32(dtype)
    kept = jnp.dtype(accumulator_dtype or jnp.finfo(wide).dtype)
    if nonnegative:
        return kept
    kept = jnp.dtype(jnp.bfloat16) if is_scaled(kept) else kept
    if jnp.issubdtype(wide, jnp.complexfloating):
        return jnp.result_type(at_least_float32(kept), jnp.complex64)
    return kept


def load(kept: jax.Array, slot: Slot | None, shared: jax.Array) -> jax.Array:
    """The average of one leaf in at least float32."""
    return format_of(kept.dtype).load(kept, slot, shared)


def store(average: jax.Array, kept: jax.Array, slot: Slot | None, shared: jax.Array) -> Any:
    """A new average in the format of the old one; if that is `Scaled`, with its amax."""
    return format_of(kept.dtype).store(average, kept, slot, shared)
