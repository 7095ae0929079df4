"""What each leaf reads of a step, in one vector: hyperparameters, random keys and scales.

On a GPU, XLA puts leaves of one shape into one kernel if they read one array, and not if they
read constants or scalars: 11 kernels, not 174, for a transformer of 174 leaves. Elsewhere constants
make the better program.
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
    """Where in the vector one leaf of one average has what is its own.

    Attributes:
      start: Where its key stands. A value and not part of the program, so that leaves of one shape
        are traced once.
      stride: How far behind stands the first number of its coding, and so on.
      axes: Per axis of the leaf, the axes of the mesh that shard it inside ``shard_map``.
    """

    start: Any
    stride: int = field(metadata={"static": True})
    axes: tuple[tuple[str, ...], ...] = field(metadata={"static": True})

    def random_bits(self, shared: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """32 random bits per element."""
        return _rounding.random_bits(_rounding.bits_of(self.read(shared, 0)), shape, self.axes)

    def read(self, shared: jax.Array, i: int) -> jax.Array:
        """The key, if ``i`` is zero, or a number of the coding."""
        return lax.dynamic_index_in_dim(shared, self.start + i * self.stride, keepdims=False)

    def max(self, x: jax.Array) -> jax.Array:
        """The largest element of a leaf, none of them negative, over all its shards; NaNs aside."""
        x = jnp.where(jnp.isnan(x), 0, x)
        # jnp.max would take the maximum with zero after the reduction, in a kernel of its own.
        return _shards.max_over(lax.reduce(x, np.float32(0), lax.max, range(x.ndim)), self.axes)


def share(scalars: Sequence[ArrayLike], rows: Any = None, *, merge: bool = True) -> jax.Array:
    """The vector: ``scalars``, and then ``rows``, which are float32.

    ``merge`` says whether leaves are to share kernels on a GPU.
    """
    dtype = jax.dtypes.canonicalize_dtype(float) if rows is None else jnp.float32
    known = not any(isinstance(x, jax.Array) for x in scalars)
    vector = jnp.asarray(np.array(scalars) if known else list(scalars), dtype)
    if rows is not None:
        # Behind a barrier, what is computed for all leaves is not repeated in each one's program.
        vector = jnp.concatenate([vector, lax.optimization_barrier(rows)])
    if not merge:
        return vector
    whole = lax.optimization_barrier
    return lax.platform_dependent(vector, cuda=whole, rocm=whole, default=lambda x: x)


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
      step: The number of the step.
      names: Those of the averages.
      leaves: The path and the number of axes of each leaf.
      codings: For each average, what a `Scaled` format wants to know of its leaves.
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
        [Slot(int(start) + i, len(leaves), of_leaf) for i, of_leaf in enumerate(axes)]
        for start in starts
    ]


@jax.jit
def one_by_one(shared: jax.Array, last: jax.Array) -> jax.Array:
    """The vector, for a leaf that is to have a kernel of its own on a GPU: not before ``last``.

    Leaves that find their amax would share a kernel as well, but XLA then copies their codes.
    """

    def after(shared: jax.Array, last: jax.Array) -> jax.Array:
        return lax.optimization_barrier((shared, last))[0]

    def at_once(shared: jax.Array, _: jax.Array) -> jax.Array:
        return shared

    return lax.platform_dependent(shared, last, cuda=after, rocm=after, default=at_once)
