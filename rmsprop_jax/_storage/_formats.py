"""The formats in which an average is stored, one class each.

A format turns the average of one leaf into an array of the leaf's shape, and back:

``init(param, fill_value)``
    The initial array.
``load(kept, slot, shared)``
    The average in at least float32.
``store(average, kept, slot, shared)``
    The new average in the format of ``kept``. A `Scaled` format also returns its amax.

``slot`` says where a leaf's random key and scales are in the vector ``shared``: see `_slots`.
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

# The smallest amax: smaller ones get its scale.
_TINY = 2.0**-100
# By which factor an amax may grow per step. Values above the range are clipped until it has caught
# up. So a single outlier, however large, does not push the other elements out of the range.
_GROWTH = 4.0
# The scale before a leaf's first nonzero update, when its amax is unknown.
UNKNOWN = -(2.0**-80)


class Cast:
    """An average that is stored by a cast to `dtype`."""

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


class Bfloat16(Cast):
    """An average with float32's range and 7 mantissa bits, with stochastic rounding."""

    rounded = True

    def __init__(self) -> None:
        super().__init__(jnp.bfloat16)

    def store(self, average: jax.Array, kept: jax.Array, slot: Any, shared: jax.Array) -> jax.Array:
        random_bits = slot.random_bits(shared, kept.shape)
        return _rounding.to_bfloat16(_as_constant(average), random_bits)


class Scaled:
    """Codes with one scale per leaf, for averages that are never negative: delayed scaling.

    The scale of a step comes from the amax of the step before; using the newest amax would take a
    second pass. The scale also decays with the average, so that only what a gradient adds is
    rounded.

    A subclass defines these; `encode` and `decode` work on one leaf:

    ``dtype``
        The dtype of the codes.
    ``log2_of_amax``
        The code of amax is about two to this power, within a factor of two. The codes above are
        room for averages that grow, those below for small elements.
    ``zero``
        The code of zero.
    ``encoding(scale)``, ``decoding(scale)``
        The further arguments of `encode` and `decode`, float32 arrays that are computed once for
        all leaves. A negative scale is `UNKNOWN`.
    ``encode(x, random_bits, *encoding)``
        The codes of ``x``, clipped to the largest.
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
        """How many numbers `decoding` and `encoding` return per leaf."""
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        decoding, encoding = (jax.eval_shape(f, scale) for f in (self.decoding, self.encoding))
        return len(decoding), len(encoding)

    def scale_of(self, amax: jax.Array) -> jax.Array:
        """The scale at which an element of size ``amax``, unless it is tiny, is stored exactly."""
        return jnp.maximum(amax, _TINY) * 2.0**-self.log2_of_amax

    def encode_nearest(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """The codes of ``x``, rounded to nearest."""
        return self.encode(x, jnp.uint32(2**31), *self.encoding(scale))

    def next_scale(self, amax: jax.Array, scale: jax.Array, decay: ArrayLike) -> jax.Array:
        """The scale times ``decay``, and times the power of two that fits the last amax."""
        decay = jnp.asarray(lax.stop_gradient(decay), jnp.float32)
        decayed = jnp.maximum(decay, 0.5) * jnp.where(scale > 0, scale, 1)
        mantissa = _rounding.bits_of(decayed) & np.uint32(2**23 - 1)
        exponent = _rounding.bits_of(jnp.maximum(amax, _TINY)) & np.uint32(2**32 - 2**23)
        bits = (mantissa | exponent) - np.uint32(self.log2_of_amax * 2**23)
        return jnp.where(amax > 0, _rounding.float_of(bits), UNKNOWN)

    def next_amax(self, amax: jax.Array, newest: jax.Array) -> jax.Array:
        """The newest amax, limited to `_GROWTH` times the last one."""
        return jnp.where(amax > 0, jnp.minimum(newest, _GROWTH * amax), newest)


def _as_constant(average: jax.Array) -> jax.Array:
    """The average in float32, as a constant: encoding is not differentiable."""
    return saturate(lax.stop_gradient(average), jnp.float32).astype(jnp.float32)
