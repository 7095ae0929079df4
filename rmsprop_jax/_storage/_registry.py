"""Which formats there are, and which one an average is kept in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rmsprop_jax._numerics import at_least_float32
from rmsprop_jax._storage._float8 import Float8
from rmsprop_jax._storage._formats import Bfloat16, Plain, Scaled
from rmsprop_jax._storage._slots import Slot

# What users may ask for, by dtype.
FORMATS: dict[jnp.dtype, Any] = {
    x.dtype: x for x in (Plain(jnp.float32), Plain(jnp.float64), Bfloat16(), Float8())
}


def format_of(dtype: Any) -> Any:
    """The format of an array of this dtype; a complex one is kept as it is."""
    dtype = jnp.dtype(dtype)
    return FORMATS[dtype] if dtype in FORMATS else Plain(dtype)


def is_low_precision(dtype: DTypeLike | None) -> bool:
    """Whether averages kept in ``dtype`` are rounded, which takes the step."""
    return dtype is not None and format_of(dtype).rounded


def is_scaled(dtype: DTypeLike | None) -> bool:
    """Whether averages kept in ``dtype`` are codes, with one scale per leaf."""
    return dtype is not None and isinstance(format_of(dtype), Scaled)


def low_precision_dtypes() -> tuple[jnp.dtype, ...]:
    """The dtypes with stochastic rounding."""
    return tuple(dtype for dtype, kept_as in FORMATS.items() if kept_as.rounded)


@functools.cache
def kept_dtype(
    dtype: DTypeLike, accumulator_dtype: DTypeLike | None, *, nonnegative: bool = False
) -> jnp.dtype:
    """What an average of gradients of ``dtype`` is kept in.

    Args:
      dtype: That of the parameter.
      accumulator_dtype: What the user asked for; ``None`` is the parameter's, at least float32.
        Nothing complex is kept in less than complex64.
      nonnegative: Whether the average is real for a complex parameter, too, and never negative.
        Others have bfloat16 where codes with a scale are asked for.
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
    """A new average as the old one is kept; if that is in codes, with its amax."""
    return format_of(kept.dtype).store(average, kept, slot, shared)
