"""Which shard of each array a device holds inside `jax.shard_map`, where JAX does not say.

Stochastic rounding needs an element's index in the global array, and 8-bit state its amax.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path

_specs: ContextVar[dict[Any, PartitionSpec] | None] = ContextVar("specs", default=None)


@contextmanager
def shard_map_specs(specs: Any) -> Iterator[None]:
    """Says how arrays are sharded inside ``jax.shard_map``, where a function only sees shards.

    Low-precision averages are rounded by a hash of each element's index. Within this context that
    is the index in the global array, so the result is bit for bit that of one device. Without it
    each shard is rounded as if it were a leaf of its own, which is unbiased too. An 8-bit average
    has one scale per leaf; with ``check_vma=False`` JAX does not know that devices hold shards of
    the same leaf, so this context is required. float32 averages do not need it. A compiled function
    keeps the ``specs`` with which it was traced.

    Args:
      specs: How the gradients and averages that ``update`` sees are sharded: a tree of
        ``PartitionSpec`` like the parameters, or a prefix of it, with ``PartitionSpec()`` for
        replicated leaves. For ZeRO-1 (replicated parameters, reduce-scattered gradients), pass the
        specs of the shards.

    Raises:
      TypeError: If a leaf of ``specs`` is not a ``PartitionSpec``.
      ValueError: In the update, if a leaf has no spec, or one that does not fit.

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
      >>> shardings = sharding.state_shardings(optimizer, params)
      >>> state = jax.jit(optimizer.init, out_shardings=shardings)(params)
      >>> def update(gradients, state, params):
      ...     with sharding.shard_map_specs(rows):
      ...         return optimizer.update(gradients, state, params)
      >>> specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
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


def mesh_axes(path: Any, ndim: int) -> tuple[tuple[str, ...], ...]:
    """For each dimension of a leaf, the mesh axes it is sharded over by `shard_map_specs`."""
    by_path = _specs.get()
    if by_path is None:
        return ((),) * ndim
    prefixes = (path[:length] for length in range(len(path), -1, -1))
    spec = next((by_path[prefix] for prefix in prefixes if prefix in by_path), None)
    if spec is None:
        raise ValueError(f"shard_map_specs has no PartitionSpec for the leaf {keystr(path)!r}")
    manual = jax.sharding.get_abstract_mesh().manual_axes
    names = tuple((name,) if isinstance(name, str) else tuple(name or ()) for name in spec)
    if len(names) > ndim or not {name for axis in names for name in axis} <= set(manual):
        raise ValueError(
            f"shard_map_specs has {spec} for the leaf {keystr(path)!r}, which has {ndim} axes, "
            f"inside a shard_map over {manual}"
        )
    return names + ((),) * (ndim - len(names))


def max_over(largest: jax.Array, axes: tuple[tuple[str, ...], ...]) -> jax.Array:
    """The maximum over all shards: over ``axes``, and over those that JAX knows about."""
    names = tuple(sorted({name for axis in axes for name in axis} | _varying(largest)))
    return lax.pmax(largest, names) if names else largest


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes over which ``x`` varies, as far as JAX keeps track."""
    aval: Any = jax.typeof(x)
    if hasattr(aval, "vma"):  # until JAX 0.9
        return aval.vma
    return getattr(getattr(aval, "manual_axis_type", None), "varying", frozenset())
