"""A real array that is never negative, in 8 bits per element, with one scale."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._storage import _rounding

FLOAT8 = jnp.dtype("float8_e5m2")

# float8_e5m2 has the exponents of float16, and 2 mantissa bits. The sign bit, unused as values are
# not negative, holds a third.
# All three are set here, so that rounding cannot carry to infinity.
_LARGEST_BITS = np.float32(2.0**15 * 1.875).view(np.uint32)
# The code of zero. Added to every value, so that the spacing below it stays what it is there.
_SMALLEST_CODE = 2.0**-14
_SMALLEST_BITS = np.float32(_SMALLEST_CODE).view(np.uint32)
# The largest of logarithmic codes, see `_coding`.
_LARGEST_LOGARITHMIC_BITS = np.float32(12.0).view(np.uint32)
# The code of amax is 2**11 to 2**13: below are 25 binades, above a factor of 7 or more.
_LOG2_OF_AMAX = 12
# The scale does not get smaller than for an amax of this size.
_TINY = 2.0**-100


class OneByteArray(NamedTuple):
    """A real array that is never negative, in one byte per element.

    ``numpy.asarray`` and ``jax.numpy.asarray`` give its values in float32, and printing shows
    them.

    Attributes:
      amax: The largest element before it was rounded, a float32 scalar. The next scale is
        chosen by it (delayed scaling): to use the newest maximum would take a second pass.
      codes: The elements in float8_e5m2, less the third mantissa bit, which is their sign.
      scale: What a code of one stands for, a float32 scalar; negative while no scale is known.
    """

    amax: Any
    codes: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.codes.shape

    def __jax_array__(self) -> jax.Array:
        return decode(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(decode(self), dtype, copy=copy)

    def __repr__(self) -> str:
        codes = self.codes
        readable = isinstance(codes, np.ndarray | jax.Array) and not isinstance(codes, Tracer)
        if not readable or (isinstance(codes, jax.Array) and codes.is_deleted()):
            return f"OneByteArray(amax={self.amax!r}, codes={codes!r}, scale={self.scale!r})"
        return f"OneByteArray({np.asarray(self)})"


def is_one_byte(x: Any) -> bool:
    """Whether ``x`` is to be seen as one leaf of a tree, not as three."""
    return isinstance(x, OneByteArray)


def from_nearest(x: jax.Array) -> OneByteArray:
    """An array from elsewhere, rounded to nearest."""
    amax = jnp.max(x, initial=0)
    # With this scale the largest element, if it is not tiny, is represented exactly.
    scale = jnp.maximum(amax, _TINY) * 2.0**-_LOG2_OF_AMAX
    return OneByteArray(amax, encode(x, scale, random_bits=jnp.uint32(2**31)), scale)


def encode(x: jax.Array, scale: jax.Array, random_bits: jax.Array) -> jax.Array:
    """The codes of ``x``, rounded up where ``random_bits`` say so."""
    scale, shift, largest_code = _coding(scale)
    bits = _rounding.bits_of(x * (1 / scale) + _SMALLEST_CODE)
    bits = ((bits - _SMALLEST_BITS) >> shift) + _SMALLEST_BITS
    bits = _rounding.round_bits(jnp.minimum(bits, largest_code), random_bits, mantissa_bits=3)
    # The third mantissa bit, bit 20, goes to the sign, bit 31.
    third = bits & np.uint32(2**20)
    code = _rounding.float_of(bits + third * np.uint32(2**11 - 1))
    # The cast is exact, and on CPU twice as fast by way of float16.
    return jnp.where(jnp.isnan(x), x, code).astype(jnp.float16).astype(FLOAT8)


def decode(kept: OneByteArray) -> jax.Array:
    """The values in float32."""
    # Under vmap's outer axes there is a scale for each.
    scale = jnp.expand_dims(kept.scale, range(jnp.ndim(kept.scale), kept.codes.ndim))
    scale, shift, _ = _coding(scale)
    code = kept.codes.astype(jnp.float32)
    bits = _rounding.bits_of(code)
    bits -= (bits >> 31) * np.uint32(2**31 - 2**20)  # the sign goes back to bit 20
    bits = ((bits - _SMALLEST_BITS) << shift) + _SMALLEST_BITS
    x = (_rounding.float_of(bits) - _SMALLEST_CODE) * scale
    return jnp.where(jnp.isnan(code), code, x)


def _coding(scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The scale of codes, by how much their bits are shifted, and the bits of the largest.

    While no scale is known, codes are logarithmic. What the bits of a float32 are above those
    of the smallest code, 2**-14, is divided by eight, a shift by three: its exponent then
    takes the place of a code's exponent and three mantissa bits, and codes are powers of two.
    The largest, 2**126, is 140 exponents above the smallest and becomes 17.5, which is
    1.5 * 2**3. With a scale of 2**-80 this goes from 2**-94 to 2**46.
    """
    unknown = scale < 0
    shift = jnp.where(unknown, np.uint32(3), np.uint32(0))
    largest_code = jnp.where(unknown, _LARGEST_LOGARITHMIC_BITS, _LARGEST_BITS)
    return jnp.where(unknown, 2.0**-80, scale), shift, largest_code


def next_scale(kept: OneByteArray, shrink: jax.Array) -> jax.Array:
    """The old scale times ``shrink``, and times the power of two that suits the last amax."""
    mantissa, _ = jnp.frexp(jnp.maximum(shrink, 0.5) * jnp.where(kept.scale > 0, kept.scale, 1))
    _, exponent = jnp.frexp(jnp.maximum(kept.amax, _TINY))
    scale = jnp.ldexp(mantissa, exponent - _LOG2_OF_AMAX)
    return jnp.where(kept.amax > 0, scale, -1)


def next_amax(kept: OneByteArray, amax: jax.Array) -> jax.Array:
    """The new amax, unless it is an outlier that would leave the others no mantissa bits."""
    limit = jnp.where(kept.amax == 0, jnp.finfo(jnp.float32).max, kept.amax * 2.0**24)
    return jnp.minimum(amax, limit)
