"""Averages in 8 bits: 25 binades and 3 mantissa bits."""

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._storage import _rounding
from rmsprop_jax._storage._formats import Scaled

# The largest code. All three mantissa bits are set, so rounding up cannot reach infinity.
_LARGEST_BITS = np.float32(2.0**15 * 1.875).view(np.uint32)
# The code of zero. Every value is offset by it, so that small values are evenly spaced, as
# subnormals are.
_SMALLEST = 2.0**-14
_SMALLEST_BITS = np.float32(_SMALLEST).view(np.uint32)
# The largest logarithmic code, see `Float8._stretch`.
_LARGEST_LOGARITHMIC_BITS = np.float32(12.0).view(np.uint32)


class Float8(Scaled):
    """float8_e5m2 with a third mantissa bit, stored in the sign bit: values are never negative.

    float8_e5m2 has float16's exponent. An array of 8-bit integers instead would be written in a
    separate pass on TPU.
    """

    dtype = jnp.dtype("float8_e5m2")
    log2_of_amax = 10
    zero = _SMALLEST

    def encoding(self, scale: jax.Array) -> tuple[jax.Array, ...]:
        """The inverse scale, the results of `_stretch`, and the bits of the largest code."""
        largest = jnp.where(scale < 0, _LARGEST_LOGARITHMIC_BITS, _LARGEST_BITS)
        return 1 / abs(scale), *self._stretch(scale), _rounding.float_of(largest)

    def decoding(self, scale: jax.Array) -> tuple[jax.Array, ...]:
        """The scale, and the results of `_stretch`."""
        return abs(scale), *self._stretch(scale)

    def _stretch(self, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        """By how many bits codes are shifted, and the offset that is added, as bits.

        Until a scale is known, codes are logarithmic: powers of two only. The bit pattern of a
        float32, relative to that of the smallest code, 2**-14, is shifted right by 3: this drops
        the mantissa and moves the 8-bit exponent into the code's 5 + 3 bits. The largest value,
        2**126, is 140 exponents above the smallest. Divided by 8 these become 17.5 exponents, a
        code of 1.5 * 2**3. With a scale of 2**-80, values range from 2**-94 to 2**46.
        """
        unknown = scale < 0
        shift = jnp.where(unknown, np.uint32(3), np.uint32(0))
        offset = jnp.where(unknown, _SMALLEST_BITS - (_SMALLEST_BITS >> 3), np.uint32(0))
        return _rounding.float_of(shift), _rounding.float_of(offset)

    def encode(self, x: jax.Array, random_bits: jax.Array, *encoding: jax.Array) -> jax.Array:
        inverse, *others = encoding
        shift, offset, largest = map(_rounding.bits_of, others)
        bits = (_rounding.bits_of(x * inverse + _SMALLEST) >> shift) + offset
        bits = _rounding.round_bits(jnp.minimum(bits, largest), random_bits, mantissa_bits=3)
        # Moves the third mantissa bit, bit 20, to the sign bit, bit 31.
        third = bits & np.uint32(2**20)
        code = _rounding.float_of(bits + third * np.uint32(2**11 - 1))
        # The cast is exact. Going through float16 makes it twice as fast on CPU.
        return jnp.where(jnp.isnan(x), x, code).astype(jnp.float16).astype(self.dtype)

    def decode(self, codes: jax.Array, *decoding: jax.Array) -> jax.Array:
        scale, *others = decoding
        shift, offset = map(_rounding.bits_of, others)
        code = codes.astype(jnp.float32)
        bits = _rounding.bits_of(code)
        bits -= (bits >> 31) * np.uint32(2**31 - 2**20)  # moves the sign bit back to bit 20
        x = (_rounding.float_of((bits - offset) << shift) - _SMALLEST) * scale
        return jnp.where(jnp.isnan(code), code, x)
