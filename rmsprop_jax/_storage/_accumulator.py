"""One average: where it starts, how it is loaded, and how it is stored."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._numerics import at_least_float32, widen
from rmsprop_jax._storage import _float8, _rounding
from rmsprop_jax._storage._float8 import FLOAT8, OneByteArray
from rmsprop_jax._storage._rounding import Rounding

BFLOAT16 = jnp.dtype("bfloat16")
LOW_PRECISION_DTYPES = (BFLOAT16, FLOAT8)
SUPPORTED_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"), *LOW_PRECISION_DTYPES)


def is_low_precision(dtype: DTypeLike | None) -> bool:
    """Whether averages kept in ``dtype`` are rounded, which takes the step."""
    return dtype is not None and jnp.dtype(dtype) in LOW_PRECISION_DTYPES


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
        Others have bfloat16 where float8_e5m2 is asked for.
    """
    wide = at_least_float32(dtype)
    kept = jnp.dtype(accumulator_dtype or jnp.finfo(wide).dtype)
    if nonnegative:
        return kept
    kept = BFLOAT16 if kept == FLOAT8 else kept
    if jnp.issubdtype(wide, jnp.complexfloating):
        return jnp.result_type(at_least_float32(kept), jnp.complex64)
    return kept


def init(
    param: Any,
    fill_value: ArrayLike,
    accumulator_dtype: DTypeLike | None = None,
    *,
    nonnegative: bool = False,
) -> Any:
    """The average of one parameter at the start, with the parameter's shape and sharding.

    The parameter is an array, a scalar or a ``jax.ShapeDtypeStruct``; see `kept_dtype` for the
    other arguments.
    """
    dtype = kept_dtype(jnp.result_type(param), accumulator_dtype, nonnegative=nonnegative)
    if dtype != FLOAT8:
        return jnp.full_like(param, fill_value, dtype=dtype)
    start = _float8.from_nearest(jnp.asarray(fill_value, jnp.float32))
    return start._replace(codes=jnp.full_like(param, start.codes, dtype=FLOAT8))


def convert(array: ArrayLike, like: Any) -> Any:
    """One average from elsewhere, rounded to nearest, as ``like`` is kept."""
    if isinstance(like, OneByteArray):
        return _float8.from_nearest(jnp.asarray(array, jnp.float32))
    return jnp.asarray(array, like.dtype)


def load(kept: Any) -> jax.Array:
    """The average in at least float32."""
    return _float8.decode(kept) if isinstance(kept, OneByteArray) else widen(kept)


def store(
    average: jax.Array, kept: Any, rounding: Rounding | None, *, shrink: ArrayLike = 1.0
) -> Any:
    """A new average as the old one is kept.

    Args:
      average: The new average.
      kept: The one that it follows, as `init` or `store` returned it.
      rounding: How to round it; only low precision needs it.
      shrink: By what the average was multiplied in this step, before something was added. A
        `OneByteArray` has that in its scale, so that only what was added is rounded.
    """
    if rounding is None or not (isinstance(kept, OneByteArray) or kept.dtype == BFLOAT16):
        return _saturate(average, kept.dtype).astype(kept.dtype)
    # A code has no derivative: what is kept in few bits is taken for a constant.
    average = _saturate(lax.stop_gradient(average), jnp.float32).astype(jnp.float32)
    random_bits = rounding.bits(average.shape)
    if not isinstance(kept, OneByteArray):
        return _rounding.to_bfloat16(average, random_bits)
    scale = _float8.next_scale(kept, jnp.asarray(lax.stop_gradient(shrink), jnp.float32))
    amax = _float8.next_amax(kept, rounding.amax(average))
    return OneByteArray(amax, _float8.encode(average, scale, random_bits), scale)


def _saturate(average: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A float64 average that ``dtype`` can hold: an infinite one would never forget."""
    if average.dtype != jnp.float64 or jnp.finfo(dtype).bits == 64:
        return average
    largest = float(jnp.finfo(dtype).max) / 4
    return jnp.where(jnp.isinf(average), average, jnp.clip(average, -largest, largest))
