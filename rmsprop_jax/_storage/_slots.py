"""One vector with all that leaves read in a step: hyperparameters, random keys and scales.

On a GPU, XLA fuses leaves of one shape into one kernel if they all read the same array, but not if
they read constants or scalars: 11 kernels, not 174, for a transformer of 174 leaves. On other
devices constants make a better program.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rmsprop_jax._storage import _rounding, _shards


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slot:
    """Where in the vector the numbers of one leaf of one average are.

    Attributes:
      start: The index of its random key. A traced value, so that leaves of one shape are traced
        only once.
      stride: The distance from the key to the first number of the coding, and between those.
      axes: For each dimension of the leaf, the mesh axes it is sharded over inside ``shard_map``.
    """

    start: Any
    stride: int = field(metadata={"static": True})
    axes: tuple[tuple[str, ...], ...] = field(metadata={"static": True})

    def random_bits(self, shared: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """32 random bits per element."""
        return _rounding.random_bits(_rounding.bits_of(self.read(shared, 0)), shape, self.axes)

    def read(self, shared: jax.Array, i: int) -> jax.Array:
        """The key if ``i`` is zero, otherwise the i-th number of the coding."""
        return lax.dynamic_index_in_dim(shared, self.start + i * self.stride, keepdims=False)

    def max(self, x: jax.Array) -> jax.Array:
        """The largest element of a nonnegative leaf over all its shards, ignoring NaN."""
        x = jnp.where(jnp.isnan(x), 0, x)
        # jnp.max would take the maximum with zero after the reduction, in a separate kernel.
        return _shards.max_over(lax.reduce(x, np.float32(0), lax.max, range(x.ndim)), self.axes)


def share(scalars: Sequence[ArrayLike], rows: Any = None, *, merge: bool = True) -> jax.Array:
    """The vector: ``scalars``, then ``rows``, which are float32.

    ``merge`` says whether leaves should share kernels on a GPU.
    """
    dtype = jax.dtypes.canonicalize_dtype(float) if rows is None else jnp.float32
    are_static = not any(isinstance(x, jax.Array) for x in scalars)
    vector = jnp.asarray(np.array(scalars) if are_static else list(scalars), dtype)
    if rows is not None:
        # The barrier keeps XLA from computing the rows again for each leaf.
        vector = jnp.concatenate([vector, lax.optimization_barrier(rows)])
    if not merge:
        return vector
    barrier = lax.optimization_barrier
    return lax.platform_dependent(vector, cuda=barrier, rocm=barrier, default=lambda x: x)


def slots(
    step: jax.Array,
    names: Sequence[str],
    leaves: Sequence[tuple[Any, int]],
    codings: Sequence[Sequence[jax.Array]],
    scalars: Sequence[ArrayLike] = (),
    *,
    merge: bool = True,
) -> tuple[jax.Array, list[list[Slot]]]:
    """The vector, and for each average the slots of its leaves.

    Args:
      step: The step.
      names: The names of the averages.
      leaves: The path and the number of dimensions of each leaf.
      codings: For each average, the codings of its leaves; empty unless it is `Scaled`.
      scalars: The hyperparameters.
      merge: See `share`.
    """
    paths = [path for path, _ in leaves]
    axes = [_shards.mesh_axes(path, ndim) for path, ndim in leaves]
    keys = [_rounding.float_of(_rounding.keys(step, name, paths)) for name in names]
    tables = [[key, *coding] for key, coding in zip(keys, codings, strict=True)]
    rows = jnp.concatenate([row for table in tables for row in table])
    shared = share(scalars, rows, merge=merge)
    widths = [len(leaves) * len(table) for table in tables]
    starts = np.cumsum([len(scalars), *widths[:-1]])
    return shared, [
        [Slot(int(start) + i, len(leaves), leaf_axes) for i, leaf_axes in enumerate(axes)]
        for start in starts
    ]


@jax.jit
def after_on_gpu(shared: jax.Array, last: jax.Array) -> jax.Array:
    """The vector, available after ``last`` on a GPU, so that the next leaf has its own kernel.

    In a shared kernel, XLA would copy the codes of leaves that compute their amax.
    """

    def wait(shared: jax.Array, last: jax.Array) -> jax.Array:
        return lax.optimization_barrier((shared, last))[0]

    def no_wait(shared: jax.Array, _: jax.Array) -> jax.Array:
        return shared

    return lax.platform_dependent(shared, last, cuda=wait, rocm=wait, default=no_wait)
