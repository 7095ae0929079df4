"""Which part of each array a device holds inside `jax.shard_map`, where JAX does not say.

Rounding needs an element's index in the whole array, and one byte its largest element.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path

_specs: ContextVar[dict[Any, PartitionSpec] | None] = ContextVar("specs", default=None)


@contextmanager
def local_shards(specs: Any) -> Iterator[None]:
    """Says how arrays are split where only parts of them are seen: inside ``jax.shard_map``.

    Averages in few bits are rounded by a hash of each element's index, and in one byte share
    a scale over each leaf. Within this context both are those of the whole array, so the bits
    are those of one device. What is kept in float32 does not need it. A function compiled within
    it keeps the ``specs`` with which it was traced.

    Args:
      specs: How the gradients and averages that ``update`` sees are split: a tree of
        ``PartitionSpec`` like the parameters, or a prefix of it; ``PartitionSpec()`` where each
        device has them whole. With whole parameters whose gradients are scattered (ZeRO-1) these
        are the specs of the parts.

    Raises:
      TypeError: If a leaf of ``specs`` is not a ``PartitionSpec``.
      ValueError: In the update, if there is none for a leaf, or one that does not fit it.

    Example:
      Each device updates its rows of the parameter and of its average.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> rows = PartitionSpec("data")
      >>> params = jax.device_put(jnp.ones((16, 2)), NamedSharding(mesh, rows))
      >>> optimizer = rmsprop(0.1, accumulator_dtype="float8_e5m2")
      >>> places = sharding.of_state(optimizer, params)
      >>> state = jax.jit(optimizer.init, out_shardings=places)(params)
      >>> def update(gradients, state, params):
      ...     with sharding.local_shards(rows):
      ...         return optimizer.update(gradients, state, params)
      >>> specs = jax.tree.map(lambda place: place.spec, places)
      >>> update = jax.shard_map(
      ...     update, mesh=mesh, in_specs=(rows, specs, rows), out_specs=(rows, specs)
      ... )
      >>> updates, state = jax.jit(update)(params, state, params)
      >>> print(f"{updates.mean():.3f}")
      -0.316
    """
    by_path = dict(tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)))
    for path, spec in by_path.items():
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"specs{keystr(path)} must be a PartitionSpec, got {spec!r}")
    token = _specs.set(by_path)
    try:
        yield
    finally:
        _specs.reset(token)


def mesh_axes(path: Any, ndim: int) -> list[tuple[str, ...]]:
    """The axes of the mesh along which each axis of a leaf is cut that is seen in parts."""
    by_path, manual = _specs.get(), jax.sharding.get_abstract_mesh().manual_axes
    if by_path is None:
        if manual:
            raise ValueError(
                "inside jax.shard_map or jax.pmap it must be known how arrays in few bits are "
                f"split (the first is at {keystr(path)!r}): with sharding.local_shards(specs), the "
                "specs of gradients and averages; PartitionSpec() if each device has them whole"
            )
        return [()] * ndim
    prefixes = (path[:length] for length in range(len(path), -1, -1))
    spec = next((by_path[prefix] for prefix in prefixes if prefix in by_path), None)
    if spec is None:
        raise ValueError(f"local_shards has no PartitionSpec for the leaf {keystr(path)!r}")
    names = [(name,) if isinstance(name, str) else tuple(name or ()) for name in spec]
    if len(names) > ndim or not {name for axis in names for name in axis} <= set(manual):
        raise ValueError(
            f"local_shards has {spec} for the leaf {keystr(path)!r}, which has {ndim} axes, inside "
            f"a shard_map over {manual}"
        )
    return names + [()] * (ndim - len(names))


def largest(x: jax.Array, path: Any) -> jax.Array:
    """The largest element of a leaf that is not negative, of all its parts; NaNs aside."""
    largest = jnp.max(x, initial=0, where=~jnp.isnan(x))
    axes = tuple(name for names in mesh_axes(path, x.ndim) for name in names)
    return lax.pmax(largest, axes) if axes else largest
