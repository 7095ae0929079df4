"""The formats that an average is kept in, one class each.

A format turns the average of one leaf into a plain array of the leaf's shape, and back:

``init(param, fill_value)``
    The array at the start.
``load(kept, slot, shared)``
    The average in at least float32.
``store(average, kept, slot, shared)``
    The new average as ``kept`` is kept. A `Scaled` format returns its amax, too.

``slot`` says where in the vector ``shared`` a leaf finds its random key and its scales: see
`_slots`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._numerics import saturate, widen
from rmsprop_jax._storage import _rounding

# The scale does not get smaller than for an amax of this size.
_TINY = 2.0**-100
# How much an amax may grow in a step. What is above the range is cut until it has caught up; one
# stray element, however large, does not take the others out of it.
_GROWTH = 4.0
# Stands for no scale: nothing is known of a leaf's size before its first gradient.
UNKNOWN = -(2.0**-80)


class Plain:
    """An average in the bits that it is computed in."""

    rounded = False

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = jnp.dtype(dtype)

    def init(self, param: Any, fill_value: ArrayLike) -> jax.Array:
        return jnp.full_like(param, fill_value, dtype=self.dtype)

    def load(self, kept: jax.Array, slot: Any, shared: jax.Array) -> jax.Array:
        del slot, shared
        return widen(kept)

    def store(self, average: jax.Array, kept: jax.Array, slot: Any, shared: jax.Array) -> jax.Array:
        del kept, slot, shared
        return saturate(average, self.dtype).astype(self.dtype)


class Bfloat16(Plain):
    """An average with float32's range and 7 mantissa bits, rounded stochastically."""

    rounded = True

    def __init__(self) -> None:
        super().__init__(jnp.bfloat16)

    def store(self, average: jax.Array, kept: jax.Array, slot: Any, shared: jax.Array) -> jax.Array:
        random_bits = slot.random_bits(shared, kept.shape)
        return _rounding.to_bfloat16(_as_constant(average), random_bits)


class Scaled:
    """Codes with one scale per leaf, for averages that are never negative: delayed scaling.

    The scale of a step comes from the amax of the step before: to use the newest would take a
    second pass. It also shrinks with the average, so that only what a gradient adds is rounded.

    A subclass has these, of which `encode` and `decode` work on one leaf:

    ``dtype``
        That of the codes.
    ``log2_of_amax``
        Where amax goes: its code is between half of two to this power and twice that. Above is room
        for averages that grow, below for small elements.
    ``zero``
        The code of zero.
    ``encoding(scale)``, ``decoding(scale)``
        What `encode` and `decode` want to know of a leaf, as float32 arrays: computed once for all
        leaves. A negative scale is `UNKNOWN`.
    ``encode(x, random_bits, *encoding)``
        The codes of ``x``; what is too large is cut.
    ``decode(codes, *decoding)``
        The average in float32.
    """

    rounded = True
    dtype: jnp.dtype
    log2_of_amax: int
    zero: float

    def encoding(self, scale: jax.Array) -> Sequence[jax.Array]:
        raise NotImplementedError

    def decoding(self, scale: jax.Array) -> Sequence[jax.Array]:
        raise NotImplementedError

    def encode(self, x: jax.Array, random_bits: jax.Array, *encoding: jax.Array) -> jax.Array:
        raise NotImplementedError

    def decode(self, codes: jax.Array, *decoding: jax.Array) -> jax.Array:
        raise NotImplementedError

    def init(self, param: Any, fill_value: ArrayLike) -> jax.Array:
        fill_value = jnp.asarray(fill_value, jnp.float32)
        code = self.encode_nearest(fill_value, self.scale_of(fill_value))
        return jnp.full_like(param, code, dtype=self.dtype)

    def load(self, kept: jax.Array, slot: Any, shared: jax.Array) -> jax.Array:
        last = 1 + self._widths[0]
        return self.decode(kept, *(slot.read(shared, i) for i in range(1, last)))

    def store(
        self, average: jax.Array, kept: jax.Array, slot: Any, shared: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        average, first = _as_constant(average), 1 + self._widths[0]
        encoding = (slot.read(shared, i) for i in range(first, first + self._widths[1]))
        codes = self.encode(average, slot.random_bits(shared, kept.shape), *encoding)
        return codes, slot.max(average)

    @functools.cached_property
    def _widths(self) -> tuple[int, int]:
        """How many numbers `decoding` and `encoding` have for a leaf."""
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        decoding, encoding = (jax.eval_shape(f, scale) for f in (self.decoding, self.encoding))
        return len(decoding), len(encoding)

    def scale_of(self, amax: jax.Array) -> jax.Array:
        """The scale with which an element of size ``amax``, if not tiny, is kept exactly."""
        return jnp.maximum(amax, _TINY) * 2.0**-self.log2_of_amax

    def encode_nearest(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """The codes of ``x``, rounded to nearest."""
        return self.encode(x, jnp.uint32(2**31), *self.encoding(scale))

    def next_scale(self, amax: jax.Array, scale: jax.Array, shrink: ArrayLike) -> jax.Array:
        """The scale times ``shrink``, and times the power of two that suits the last amax."""
        shrink = jnp.asarray(lax.stop_gradient(shrink), jnp.float32)
        shrunk = jnp.maximum(shrink, 0.5) * jnp.where(scale > 0, scale, 1)
        mantissa = _rounding.bits_of(shrunk) & np.uint32(2**23 - 1)
        exponent = _rounding.bits_of(jnp.maximum(amax, _TINY)) & np.uint32(2**32 - 2**23)
        bits = (mantissa | exponent) - np.uint32(self.log2_of_amax * 2**23)
        return jnp.where(amax > 0, _rounding.float_of(bits), UNKNOWN)

    def next_amax(self, amax: jax.Array, newest: jax.Array) -> jax.Array:
        """The newest amax, or less if it grew too fast."""
        return jnp.where(amax > 0, jnp.minimum(newest, _GROWTH * amax), newest)


def _as_constant(average: jax.Array) -> jax.Array:
    """The average in float32. Codes have no derivative: what is kept is taken for a constant."""
    return saturate(lax.stop_gradient(average), jnp.float32).astype(jnp.float32)
