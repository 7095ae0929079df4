"""Stochastic rounding: up with the probability that makes the mean right.

The random bits are a hash of the step, the leaf's path and the element's index. They need no
key, are the same on any layout of devices, and after a checkpoint go on where they were.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr
from jax.typing import ArrayLike

from rmsprop_jax._storage import _shards


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rounding:
    """How one leaf is rounded in one step.

    Attributes:
      shared: A float32 vector that all leaves read, see `share`.
      key: Where in it, as bits, the step hashed with the leaf's path stands. A value and not part
        of the program, so that leaves of one shape are traced once.
      axes: Per axis of the leaf, the axes of the mesh that shard it inside ``shard_map``.
    """

    shared: Any
    key: Any
    axes: tuple[tuple[str, ...], ...] = field(metadata={"static": True})

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """32 random bits per element.

        `jax.random.bits` would do the same at several times the arithmetic, enough to be slower
        than memory.
        """
        key = bits_of(lax.dynamic_index_in_dim(self.shared, self.key, keepdims=False))
        return _hash(_index(shape, self.axes) + key)

    def amax(self, x: jax.Array) -> jax.Array:
        """The largest element of a leaf that is not negative, over all its shards; NaNs aside."""
        largest = jnp.max(x, initial=0, where=~jnp.isnan(x))
        axes = tuple(name for names in self.axes for name in names)
        return lax.pmax(largest, axes) if axes else largest


def share(
    scalars: Sequence[ArrayLike], keys: Sequence[jax.Array] = (), *, traced: bool = True
) -> jax.Array:
    """What all leaves read, as one vector: hyperparameters, and the keys of stochastic rounding.

    On a GPU, XLA puts leaves of one shape into one kernel if they read one array, and not if they
    read constants or scalars: 11 kernels, not 174, for a transformer of 174 leaves. Elsewhere
    constants make the better program; and where nothing is ``traced``, there is no program.
    """
    dtype = jnp.float32 if keys else jax.dtypes.canonicalize_dtype(float)
    known = not any(isinstance(x, jax.Array) for x in scalars)
    vector = jnp.asarray(np.array(scalars) if known else list(scalars), dtype)
    if keys:
        # Behind a barrier, the hash of the step is not repeated in the program of every leaf.
        bits = lax.optimization_barrier(jnp.concatenate([float_of(key) for key in keys]))
        vector = jnp.concatenate([vector, bits])
    if not traced:
        return vector
    whole = lax.optimization_barrier
    return lax.platform_dependent(vector, cuda=whole, rocm=whole, default=lambda x: x)


def keys(step: jax.Array, name: str, paths: Sequence[Any]) -> jax.Array:
    """The step hashed with the path of each leaf, and the name of the average: uint32."""
    crcs = np.array([zlib.crc32(f"{name}{keystr(path)}".encode()) for path in paths], np.uint32)
    return _hash(_hash(step.astype(jnp.uint32) * np.uint32(0x9E3779B9) + crcs))


def roundings(
    step: jax.Array,
    names: Sequence[str],
    paths: Sequence[Any],
    ndims: Sequence[int],
    scalars: Sequence[ArrayLike] = (),
    *,
    traced: bool = True,
) -> tuple[jax.Array, list[list[Rounding]]]:
    """What all leaves read, and for each average how each of its leaves is rounded."""
    shared = share(scalars, [keys(step, name, paths) for name in names], traced=traced)
    axes = [_shards.mesh_axes(path, ndim) for path, ndim in zip(paths, ndims, strict=True)]
    first = range(len(scalars), len(shared), max(len(paths), 1))
    return shared, [
        [Rounding(shared, start + i, axes_of_leaf) for i, axes_of_leaf in enumerate(axes)]
        for start, _ in zip(first, names, strict=False)
    ]


def _index(shape: tuple[int, ...], axes: tuple[tuple[str, ...], ...]) -> jax.Array:
    """The index of each element in the global array, of which this may be a shard."""
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
    # The middle of "lowbias32" (github.com/skeeto/hash-prospector). Its high bits are the best.
    x *= np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def round_bits(bits: jax.Array, random_bits: jax.Array, mantissa_bits: int) -> jax.Array:
    """The bits of a float32, not NaN, rounded to so many mantissa bits."""
    dropped = 23 - mantissa_bits
    return (bits + (random_bits >> (32 - dropped))) & np.uint32(2**32 - 2**dropped)


def _to_bfloat16(x: jax.Array, random_bits: jax.Array) -> jax.Array:
    """A float32 array in bfloat16; its derivative is that of the cast."""
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
    """The float32 that has these bits."""
    return lax.bitcast_convert_type(bits, jnp.float32)
