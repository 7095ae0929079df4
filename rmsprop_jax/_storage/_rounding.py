"""Stochastic rounding: up or down at random, so that the expected value is exact.

The random bits are a hash of the step, the leaf's path and the element's index. They need no PRNG
key, are the same on any layout of devices, and continue after a checkpoint.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr


def keys(step: jax.Array, name: str, paths: Sequence[Any]) -> jax.Array:
    """Per leaf, a hash of the step, the leaf's path and the average's name: uint32."""
    crcs = np.array([zlib.crc32(f"{name}{keystr(path)}".encode()) for path in paths], np.uint32)
    return _hash(_hash(step.astype(jnp.uint32) * np.uint32(0x9E3779B9) + crcs))


def random_bits(
    key: jax.Array, shape: tuple[int, ...], axes: tuple[tuple[str, ...], ...]
) -> jax.Array:
    """32 random bits per element of a leaf, or of a shard of it over ``axes`` of the mesh.

    `jax.random.bits` takes several times the arithmetic, enough to be slower than memory.
    """
    return _hash(_index(shape, axes) + key)


def _index(shape: tuple[int, ...], axes: tuple[tuple[str, ...], ...]) -> jax.Array:
    """The index of each element in the global array, also if this is a shard of it."""
    sizes = [size * lax.axis_size(names) for size, names in zip(shape, axes, strict=True)]
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        stride = np.uint32(math.prod(sizes[axis + 1 :]) % 2**32)
        along = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if axes[axis]:
            along += lax.axis_index(axes[axis]).astype(jnp.uint32) * np.uint32(size)
        index += along * stride
    return index


def _hash(x: jax.Array) -> jax.Array:
    # The middle of "lowbias32" (github.com/skeeto/hash-prospector). The high bits are the best.
    x *= np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def round_bits(bits: jax.Array, random_bits: jax.Array, mantissa_bits: int) -> jax.Array:
    """Stochastically rounds the bits of a float32, not NaN, to ``mantissa_bits``."""
    dropped = 23 - mantissa_bits
    return (bits + (random_bits >> (32 - dropped))) & np.uint32(2**32 - 2**dropped)


def _to_bfloat16(x: jax.Array, random_bits: jax.Array) -> jax.Array:
    """Stochastically rounds float32 to bfloat16, with the derivative of the cast."""
    rounded = float_of(round_bits(bits_of(x), random_bits, mantissa_bits=7))
    return jnp.where(jnp.isnan(x), x, rounded).astype(jnp.bfloat16)


def _to_bfloat16_jvp(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> Any:
    return to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


to_bfloat16 = jax.custom_jvp(_to_bfloat16)
to_bfloat16.defjvp(_to_bfloat16_jvp)


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of a float32, as a uint32."""
    return lax.bitcast_convert_type(x, jnp.uint32)


def float_of(bits: jax.Array) -> jax.Array:
    """The float32 with these bits."""
    return lax.bitcast_convert_type(bits, jnp.float32)
