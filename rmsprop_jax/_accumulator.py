"""How an average is kept between steps, in four bytes or two or one. Knows nothing of RMSprop.

Arithmetic is done in at least float32, whatever the parameters are, and so are averages
kept unless a narrower dtype is asked for. What is kept in fewer bits is rounded without
bias (`_rounding`). Rounded to nearest, an average in few bits stands still: what a step
adds is less than half a unit in the last place.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import tree_map_with_path
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _rounding, _shards

BFLOAT16 = jnp.dtype("bfloat16")
FLOAT8 = jnp.dtype("float8_e5m2")
SUPPORTED_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"), BFLOAT16, FLOAT8)

# float8_e5m2 has the exponents of float16, and 2 digits behind the point; its sign is a third.
# All three are set here, so that rounding cannot carry to infinity.
_LARGEST_BITS = np.float32(2.0**15 * 1.875).view(np.uint32)
# That of zero: it is added to all, so that the spacing below it stays what it is there.
_SMALLEST_CODE = 2.0**-14
_SMALLEST_BITS = np.float32(_SMALLEST_CODE).view(np.uint32)
# The largest of logarithmic codes, see `_coding`.
_LARGEST_LOGARITHMIC_BITS = np.float32(12.0).view(np.uint32)
# The largest element's code is 2**11 to 2**13: below are 25 binades, above a factor of 7 or more.
_LOG2_LARGEST = 12
# The unit does not get smaller than for a largest element of this size.
_TINY = 2.0**-100


class OneByteArray(NamedTuple):
    """A real array that is never negative, in one byte an element.

    ``numpy.asarray`` and ``jax.numpy.asarray`` give its values in float32, and printing shows
    them.

    Attributes:
      codes: The elements in float8_e5m2, less the third digit behind the point, which
        is their sign.
      unit: What a code of one stands for, a float32 scalar; negative, where no unit is known.
      largest: The largest element before it was rounded, a float32 scalar. The next
        unit is chosen by it: to use the newest maximum would take a second pass.
    """

    codes: jax.Array
    unit: jax.Array
    largest: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.codes.shape

    def __jax_array__(self) -> jax.Array:
        return _decode(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(_decode(self), dtype, copy=copy)

    def __repr__(self) -> str:
        codes = self.codes
        readable = isinstance(codes, np.ndarray | jax.Array) and not isinstance(codes, Tracer)
        if not readable or (isinstance(codes, jax.Array) and codes.is_deleted()):
            return f"OneByteArray(codes={codes!r}, unit={self.unit!r}, largest={self.largest!r})"
        return f"OneByteArray({np.asarray(self)})"


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype``, or float32 where ``dtype`` is narrower; of a complex one, each part counts."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def widen(x: ArrayLike) -> jax.Array:
    """``x`` in at least float32."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def is_narrow(dtype: DTypeLike | None) -> bool:
    """Whether averages asked for in ``dtype`` are rounded, which takes the number of the step."""
    return dtype is not None and jnp.dtype(dtype) in (BFLOAT16, FLOAT8)


def is_one_byte(x: Any) -> bool:
    """Whether ``x`` is to be seen as one leaf of a tree, not as three."""
    return isinstance(x, OneByteArray)


def full_like(
    params: Any, fill_value: Any, dtype: DTypeLike | None = None, *, nonnegative: bool = False
) -> Any:
    """The averages of parameters at the start, each with its parameter's shape and sharding.

    Args:
      params: A tree of arrays, scalars or ``jax.ShapeDtypeStruct``.
      fill_value: What the averages start from.
      dtype: Real dtype to keep them in; ``None`` means that of each parameter, at least
        float32. Nothing complex is narrower than complex64.
      nonnegative: Whether they are real for a complex parameter, too, and never negative.
        Others have bfloat16 where float8_e5m2 is asked for.
    """

    def full(leaf: Any) -> Any:
        leaf_dtype = wide_dtype(jnp.result_type(leaf))
        kept = jnp.dtype(dtype or jnp.finfo(leaf_dtype).dtype)
        if not nonnegative:
            kept = BFLOAT16 if kept == FLOAT8 else kept
            if jnp.issubdtype(leaf_dtype, jnp.complexfloating):
                kept = jnp.result_type(wide_dtype(kept), jnp.complex64)
        if kept != FLOAT8:
            return jnp.full_like(leaf, fill_value, dtype=kept)
        code, unit, largest = _one_byte(jnp.asarray(fill_value, jnp.float32))
        return OneByteArray(jnp.full_like(leaf, code, dtype=FLOAT8), unit, largest)

    return jax.tree.map(full, params)


def convert(array: ArrayLike, like: Any) -> Any:
    """One average from elsewhere, rounded to nearest, as ``like`` is kept."""
    if isinstance(like, OneByteArray):
        return OneByteArray(*_one_byte(jnp.asarray(array, jnp.float32)))
    return jnp.asarray(array, like.dtype)


def recognized(state: Any) -> Any:
    """A state, with a `OneByteArray` where Flax's NNX has made a mapping of it."""

    def is_one(x: Any) -> bool:
        is_it = isinstance(x, Mapping) and set(x) == set(OneByteArray._fields)
        return is_it and getattr(x["codes"], "dtype", None) == FLOAT8

    return jax.tree.map(lambda x: OneByteArray(**x) if is_one(x) else x, state, is_leaf=is_one)


def load(kept: Any) -> Any:
    """The averages in a tree, in at least float32."""
    return jax.tree.map(widen, kept, is_leaf=is_one_byte)


def store(
    averages: Any, kept: Any, count: jax.Array | None, name: str, shrunk: ArrayLike = 1.0
) -> Any:
    """New averages as the old ones are kept.

    Args:
      averages: A tree of arrays.
      kept: The averages that they follow on, as `full_like` or `store` returned them.
      count: The number of the step; only narrow dtypes need it.
      name: The averages' name: two at the same step are rounded independently.
      shrunk: By what all averages were multiplied in this step, before something was added.
        A `OneByteArray` has that in its unit, so that only what was added is rounded.
    """

    def store_leaf(path: Any, average: jax.Array, old: Any) -> Any:
        one_byte = isinstance(old, OneByteArray)
        if not one_byte and not is_narrow(old.dtype):
            return average.astype(old.dtype)
        assert count is not None
        # A code has no derivative: what is kept in few bits is taken for a constant.
        average = lax.stop_gradient(average).astype(jnp.float32)
        noise = _rounding.noise(average.shape, count, name, path)
        if not one_byte:
            return _rounding.to_bfloat16(average, noise)
        unit = _next_unit(old, jnp.asarray(lax.stop_gradient(shrunk), jnp.float32))
        largest = _next_largest(old, _shards.largest(average, path))
        return OneByteArray(_encode(average, unit, noise), unit, largest)

    return tree_map_with_path(store_leaf, averages, kept)


def _one_byte(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    largest = jnp.max(x, initial=0)
    # So the largest element, if it is not tiny, is represented exactly.
    unit = jnp.maximum(largest, _TINY) * 2.0**-_LOG2_LARGEST
    return _encode(x, unit, noise=jnp.uint32(2**31)), unit, largest


def _encode(x: jax.Array, unit: jax.Array, noise: jax.Array) -> jax.Array:
    unit, shift, largest_code = _coding(unit)
    bits = _rounding.bits_of(x * (1 / unit) + _SMALLEST_CODE)
    bits = ((bits - _SMALLEST_BITS) >> shift) + _SMALLEST_BITS
    bits = _rounding.round_bits(jnp.minimum(bits, largest_code), noise, digits=3)
    # The third digit, bit 20, goes to the sign, bit 31.
    third = bits & np.uint32(2**20)
    code = _rounding.float_of(bits + third * np.uint32(2**11 - 1))
    # The cast is exact, and on CPU twice as fast by way of float16.
    return jnp.where(jnp.isnan(x), x, code).astype(jnp.float16).astype(FLOAT8)


def _decode(kept: OneByteArray) -> jax.Array:
    # Under vmap's outer axes there is a unit for each.
    unit = jnp.expand_dims(kept.unit, range(jnp.ndim(kept.unit), kept.codes.ndim))
    unit, shift, _ = _coding(unit)
    code = kept.codes.astype(jnp.float32)
    bits = _rounding.bits_of(code)
    bits -= (bits >> 31) * np.uint32(2**31 - 2**20)  # the sign goes back to bit 20
    bits = ((bits - _SMALLEST_BITS) << shift) + _SMALLEST_BITS
    x = (_rounding.float_of(bits) - _SMALLEST_CODE) * unit
    return jnp.where(jnp.isnan(code), code, x)


def _coding(unit: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The unit of codes, by how much their bits are shifted, and the bits of the largest.

    Where no unit is known codes are logarithmic. What the bits of a float32 are above those
    of the smallest code, 2**-14, is divided by eight, a shift by three: its exponent then
    takes the place of a code's exponent and three digits, and codes are powers of two. The
    largest, 2**126, is 140 exponents above the smallest and becomes 17.5, which is 1.5 * 2**3.
    In units of 2**-80 this goes from 2**-94 to 2**46.
    """
    unknown = unit < 0
    shift = jnp.where(unknown, np.uint32(3), np.uint32(0))
    largest_code = jnp.where(unknown, _LARGEST_LOGARITHMIC_BITS, _LARGEST_BITS)
    return jnp.where(unknown, 2.0**-80, unit), shift, largest_code


def _next_unit(kept: OneByteArray, shrunk: Any) -> jax.Array:
    """The unit, ``shrunk`` and times the power of two that suits the largest element."""
    mantissa, _ = jnp.frexp(jnp.maximum(shrunk, 0.5) * jnp.where(kept.unit > 0, kept.unit, 1))
    _, exponent = jnp.frexp(jnp.maximum(kept.largest, _TINY))
    unit = jnp.ldexp(mantissa, exponent - _LOG2_LARGEST)
    return jnp.where(kept.largest > 0, unit, -1)


def _next_largest(kept: OneByteArray, largest: jax.Array) -> jax.Array:
    """The largest element, unless it is a stray one that would leave the others no digits."""
    limit = jnp.where(kept.largest == 0, jnp.finfo(jnp.float32).max, kept.largest * 2.0**24)
    return jnp.minimum(largest, limit)
