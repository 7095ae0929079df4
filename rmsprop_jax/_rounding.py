"""Rounding without bias: up with the probability that makes the mean right.

The randomness is a hash of the step, the leaf's path and the element's index. It needs no
key, is the same on any layout of devices, and after a checkpoint goes on where it was.
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr

from rmsprop_jax import _shards


def noise(shape: tuple[int, ...], count: jax.Array, name: str, path: Any) -> jax.Array:
    """32 random bits an element: a hash of the step, a name with the leaf's path, and the index.

    `jax.random.bits` would do the same at several times the arithmetic, enough to be
    slower than memory.
    """
    crc = zlib.crc32(f"{name}{keystr(path)}".encode())
    step = count.astype(jnp.uint32) * np.uint32(0x9E3779B9) + np.uint32(crc)
    return _hash(_index(shape, path) + _hash(_hash(step)))


def _index(shape: tuple[int, ...], path: Any) -> jax.Array:
    """The index of each element in the whole array, of which this may be a part."""
    names = _shards.mesh_axes(path, len(shape))
    whole = [size * lax.axis_size(axes) for size, axes in zip(shape, names, strict=True)]
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        stride = np.uint32(math.prod(whole[axis + 1 :]) % 2**32)
        along = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if names[axis]:
            along += lax.axis_index(names[axis]).astype(jnp.uint32) * np.uint32(size)
        index += along * stride
    return index


def _hash(x: jax.Array) -> jax.Array:
    # The middle of "lowbias32" (github.com/skeeto/hash-prospector). Its high bits are the best.
    x *= np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def round_bits(bits: jax.Array, noise: jax.Array, digits: int) -> jax.Array:
    """The bits of a float32, not NaN, with so many binary digits behind the point."""
    dropped = 23 - digits
    return (bits + (noise >> (32 - dropped))) & np.uint32(2**32 - 2**dropped)


@jax.custom_jvp
def to_bfloat16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """A float32 array in bfloat16; its derivative is that of the cast."""
    rounded = float_of(round_bits(bits_of(x), noise, digits=7))
    return jnp.where(jnp.isnan(x), x, rounded).astype(jnp.bfloat16)


@to_bfloat16.defjvp
def _to_bfloat16_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of a float32, as a uint32."""
    return lax.bitcast_convert_type(x, jnp.uint32)


def float_of(bits: jax.Array) -> jax.Array:
    """The float32 that has these bits."""
    return lax.bitcast_convert_type(bits, jnp.float32)
