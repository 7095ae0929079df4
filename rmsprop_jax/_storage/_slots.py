"""What each leaf reads of a step, in one vector: hyperparameters, random keys and scales.

On a GPU, XLA puts leaves of one shape into one kernel if they read one array, and not if they
read constants or scalars: 11 kernels, not 174, for a transformer of 174 leaves. Elsewhere constants
make the better program; and where nothing is traced, there is no program.
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
    """What one leaf of one average reads.

    Attributes:
      shared: The vector.
      start: Where in it the key, the scale and the next scale of this leaf stand. A value and not
        part of the program, so that leaves of one shape are traced once.
      axes: Per axis of the leaf, the axes of the mesh that shard it inside ``shard_map``.
    """

    shared: Any
    start: Any
    axes: tuple[tuple[str, ...], ...] = field(metadata={"static": True})

    def random_bits(self, shape: tuple[int, ...]) -> jax.Array:
        """32 random bits per element."""
        return _rounding.random_bits(_rounding.bits_of(self._at(0)), shape, self.axes)

    @property
    def scale(self) -> jax.Array:
        return self._at(1)

    @property
    def next_scale(self) -> jax.Array:
        return self._at(2)

    def max(self, x: jax.Array) -> jax.Array:
        """The largest element of a leaf, none of them negative, over all its shards; NaNs aside."""
        return _shards.max_over(jnp.max(x, initial=0, where=~jnp.isnan(x)), self.axes)

    def _at(self, offset: int) -> jax.Array:
        return lax.dynamic_index_in_dim(self.shared, self.start + offset, keepdims=False)


def share(scalars: Sequence[ArrayLike], rows: Any = None, *, traced: bool = True) -> jax.Array:
    """The vector: ``scalars``, and then ``rows``, which are float32."""
    dtype = jax.dtypes.canonicalize_dtype(float) if rows is None else jnp.float32
    known = not any(isinstance(x, jax.Array) for x in scalars)
    vector = jnp.asarray(np.array(scalars) if known else list(scalars), dtype)
    if rows is not None:
        # Behind a barrier, what is computed for all leaves is not repeated in each one's program.
        vector = jnp.concatenate([vector, lax.optimization_barrier(rows)])
    if not traced:
        return vector
    whole = lax.optimization_barrier
    return lax.platform_dependent(vector, cuda=whole, rocm=whole, default=lambda x: x)


def slots(
    step: jax.Array,
    names: Sequence[str],
    leaves: Sequence[tuple[Any, int]],
    scales: Sequence[Sequence[jax.Array]],
    scalars: Sequence[ArrayLike] = (),
    *,
    traced: bool = True,
) -> tuple[jax.Array, list[list[Slot]]]:
    """The vector, and for each average the slots of its leaves.

    Args:
      step: The number of the step.
      names: Those of the averages.
      leaves: The path and the number of axes of each leaf.
      scales: For each average the scales of its leaves and the next ones, or nothing.
      scalars: The hyperparameters.
      traced: Whether the step is compiled.
    """
    paths = [path for path, _ in leaves]
    axes = [_shards.mesh_axes(path, ndim) for path, ndim in leaves]
    keys = [_rounding.float_of(_rounding.keys(step, name, paths)) for name in names]
    tables = [jnp.stack([key, *two], axis=1) for key, two in zip(keys, scales, strict=True)]
    shared = share(scalars, jnp.concatenate([x.ravel() for x in tables]), traced=traced)
    starts = np.cumsum([len(scalars), *(table.size for table in tables)])
    return shared, [
        [Slot(shared, int(start) + i * table.shape[1], of_leaf) for i, of_leaf in enumerate(axes)]
        for start, table in zip(starts, tables, strict=False)
    ]
