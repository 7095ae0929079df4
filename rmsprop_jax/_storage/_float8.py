"""Averages in 8 bits: 25 binades and 3 mantissa bits."""

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._storage import _rounding
from rmsprop_jax._storage._formats import Scaled

# All three mantissa bits are set here, so that rounding cannot carry to infinity.
_LARGEST_BITS = np.float32(2.0**15 * 1.875).view(np.uint32)
# The code of zero. Added to every value, so that the spacing below it stays what it is there.
_SMALLEST = 2.0**-14
_SMALLEST_BITS = np.float32(_SMALLEST).view(np.uint32)
# The largest of logarithmic codes, see `Float8.coding`.
_LARGEST_LOGARITHMIC_BITS = np.float32(12.0).view(np.uint32)


class Float8(Scaled):
    """float8_e5m2 with a third mantissa bit: its sign, unused as values are not negative.

    float8_e5m2 has the exponents of float16. On a TPU an array of integers of 8 bits would be
    written in a pass of its own.
    """

    dtype = jnp.dtype("float8_e5m2")
    log2_of_amax = 10
    zero = _SMALLEST

    def coding(self, scale: jax.Array) -> tuple[jax.Array, ...]:
        """The scale, its inverse, and how codes are stretched, as bits: by a shift and an offset.

        While no scale is known, codes are logarithmic. What the bits of a float32 are above those
        of the smallest code, 2**-14, is divided by eight, a shift by three: its exponent then
        takes the place of a code's exponent and three mantissa bits, and codes are powers of two.
        The largest, 2**126, is 140 exponents above the smallest and becomes 17.5, which is
        1.5 * 2**3. With a scale of 2**-80 this goes from 2**-94 to 2**46.
        """
        unknown = scale < 0
        shift = jnp.where(unknown, np.uint32(3), np.uint32(0))
        offset = jnp.where(unknown, _SMALLEST_BITS - (_SMALLEST_BITS >> 3), np.uint32(0))
        largest = jnp.where(unknown, _LARGEST_LOGARITHMIC_BITS, _LARGEST_BITS)
        bits = (_rounding.float_of(x) for x in (shift, offset, largest))
        return abs(scale), 1 / abs(scale), *bits

    def encode(self, x: jax.Array, random_bits: jax.Array, *coding: jax.Array) -> jax.Array:
        _, inverse, *bits_of_coding = coding
        shift, offset, largest = map(_rounding.bits_of, bits_of_coding)
        bits = (_rounding.bits_of(x * inverse + _SMALLEST) >> shift) + offset
        bits = _rounding.round_bits(jnp.minimum(bits, largest), random_bits, mantissa_bits=3)
        # The third mantissa bit, bit 20, goes to the sign, bit 31.
        third = bits & np.uint32(2**20)
        code = _rounding.float_of(bits + third * np.uint32(2**11 - 1))
        # The cast is exact, and on CPU twice as fast by way of float16.
        return jnp.where(jnp.isnan(x), x, code).astype(jnp.float16).astype(self.dtype)

    def decode(self, codes: jax.Array, *coding: jax.Array) -> jax.Array:
        scale, _, *bits_of_coding = coding
        shift, offset, _ = map(_rounding.bits_of, bits_of_coding)
        code = codes.astype(jnp.float32)
        bits = _rounding.bits_of(code)
        bits -= (bits >> 31) * np.uint32(2**31 - 2**20)  # the sign goes back to bit 20
        x = (_rounding.float_of((bits - offset) << shift) - _SMALLEST) * scale
        return jnp.where(jnp.isnan(code), code, x)
