"""Shardings for optimizer state: like the parameters', or sharded over an axis (ZeRO-1).

Pass them to ``jax.jit`` as ``out_shardings``, and to Orbax, with shapes, to restore a state.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax import _validate_trees
from rmsprop_jax._storage import shard_map_specs

__all__ = ["shard_map_specs", "shard_over", "state_shardings", "with_sharding_constraint"]


def state_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any = None
) -> Any:
    """The shardings of an optimizer state: averages like their parameter, the rest replicated.

    Args:
      optimizer: An Optax transformation that ``optax.tree_map_params`` supports, such as a
        chain or a wrapper; not ``optax.flatten`` or ``optax.partition`` by a function.
      params: The parameters, or ``jax.ShapeDtypeStruct`` of them.
      shardings: A tree of ``NamedSharding`` like ``params``, or one for all leaves; ``None`` takes
        those of ``params``. For ZeRO-1 pass the result of `shard_over`.

    Returns:
      A tree of ``NamedSharding`` like ``optimizer.init(params)``. Pass it to ``jax.jit`` as
      ``out_shardings`` or, with the shapes in ``jax.ShapeDtypeStruct``, to Orbax. Leaves whose
      shape is not their parameter's are replicated: the factored averages of Adafactor, and the
      scales of 8-bit averages.

    Raises:
      TypeError: If a sharding is missing or not a ``NamedSharding``.
      ValueError: If ``shardings`` is not a tree like ``params``, its leaves are on several meshes,
        or ``params`` has no leaves.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> rows = NamedSharding(mesh, PartitionSpec("data"))
      >>> params = jax.device_put({"w": jnp.ones((16, 4))}, rows)
      >>> optimizer = rmsprop(1e-3, bias_correction=True)
      >>> shardings = sharding.state_shardings(optimizer, params)
      >>> shardings[0].nu["w"] == rows, shardings[0].count.is_fully_replicated
      (True, True)
      >>> state = jax.jit(optimizer.init, out_shardings=shardings)(params)
      >>> state[0].nu["w"].sharding == rows
      True
    """
    if shardings is None:
        shardings = tree_map_with_path(_checked_sharding, params)
    shardings = _as_tree(shardings, params)
    mesh = _checked_mesh(shardings, params, "params")
    if mesh is None:
        raise ValueError(
            "params has no leaves, so its mesh is unknown; give at least one parameter"
        )
    replicated = NamedSharding(mesh, PartitionSpec())
    # Without shardings: those of an Explicit mesh would make `init` need that mesh as its context.
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)

    def average_sharding(average: Any, param: Any, sharding: Any) -> Any:
        # A MaskedNode has no leaves.
        return jax.tree.map(lambda x: sharding if x.shape == param.shape else replicated, average)

    return optax.tree_map_params(
        optimizer,
        average_sharding,
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        shardings,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def shard_over(params: Any, mesh: Mesh, axis: str = "data") -> Any:
    """Shardings of each leaf over an axis of the mesh, along its largest divisible dimension.

    Put parameters there: FSDP. Keep them replicated and put only the state there: ZeRO-1, where
    gradients are reduce-scattered, each device updates its shard, and the new parameters are
    all-gathered.

    Args:
      params: The parameters, or ``jax.ShapeDtypeStruct`` of them. Leaves that are already sharded
        over other axes of ``mesh`` stay so, and are sharded over ``axis``, too.
      mesh: The devices.
      axis: The axis of ``mesh`` to shard over.

    Returns:
      A tree of ``NamedSharding`` like ``params``. Of dimensions with equal sizes, the first is
      sharded.

    Raises:
      ValueError: If ``mesh`` has no such axis.

    Warns:
      UserWarning: If no free dimension of a leaf is divisible by the size of ``axis``. The warning
        names the leaf, which stays replicated over ``axis``. It does not mention leaves with fewer
        elements than devices.

    Example:
      ZeRO-1: compute the shardings, put the state there, and constrain the gradients to them
      before the update.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> replicated = NamedSharding(mesh, PartitionSpec())
      >>> params = jax.device_put({"w": jnp.ones((4, 16))}, replicated)
      >>> optimizer = rmsprop(0.1)
      >>> sharded = sharding.shard_over(params, mesh)
      >>> sharded["w"].spec[1]
      'data'
      >>> shardings = sharding.state_shardings(optimizer, params, sharded)
      >>> state = jax.jit(optimizer.init, out_shardings=shardings)(params)
      >>> def step(params, state, x):
      ...     gradients = jax.grad(lambda params: jnp.sum((x @ params["w"]) ** 2))(params)
      ...     gradients = sharding.with_sharding_constraint(gradients, sharded)
      ...     updates, state = optimizer.update(gradients, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(replicated, shardings))
      >>> x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data")))
      >>> params, state = step(params, state, x)
      >>> state[0].nu["w"].sharding == sharded["w"], params["w"].sharding == replicated
      (True, True)

    References:
      Rajbhandari et al., `ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
      <https://arxiv.org/abs/1910.02054>`_, 2020.
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the mesh's, {mesh.axis_names}, got {axis!r}")
    devices, replicated = mesh.shape[axis], []

    def sharded(path: Any, leaf: Any) -> NamedSharding:
        shape, given = jnp.shape(leaf), _sharding(leaf)
        on_mesh = isinstance(given, NamedSharding) and given.mesh.shape == mesh.shape
        spec: list[Any] = [*given.spec] if on_mesh else []
        memory = given.memory_kind if on_mesh else None
        if axis in jax.tree.leaves(spec):
            return NamedSharding(mesh, given.spec, memory_kind=memory)
        spec += [None] * (len(shape) - len(spec))
        free = [i for i, size in enumerate(shape) if spec[i] is None and size % devices == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = axis
        elif math.prod(shape) >= devices > 1:
            replicated.append(f"params{keystr(path)} {shape}")
        return NamedSharding(mesh, PartitionSpec(*spec), memory_kind=memory)

    shardings = tree_map_with_path(sharded, params)
    if replicated:
        warnings.warn(
            f"no free dimension is divisible by the {devices} devices of {axis!r}, so these leaves "
            f"stay replicated over it: {', '.join(replicated)}",
            stacklevel=2,
        )
    return shardings


def with_sharding_constraint(tree: Any, shardings: Any) -> Any:
    """Constrains the shardings of arrays inside ``jit``, on a mesh with Auto or Explicit axes.

    For the gradients of ZeRO-1 this turns their all-reduce into a reduce-scatter: each device
    receives only its shard of the sum. Values do not change.

    Args:
      tree: A tree of arrays.
      shardings: A tree of ``NamedSharding`` like ``tree``, or one for all leaves.

    Returns:
      The arrays with these shardings. See `shard_over` for an example.

    Raises:
      TypeError: If a sharding is not a ``NamedSharding``.
      ValueError: If ``shardings`` is not a tree like ``tree``, or the mesh has both Auto and
        Explicit axes.
    """
    shardings = _as_tree(shardings, tree)
    mesh = _checked_mesh(shardings, tree, "tree")
    types = set() if mesh is None else set(mesh.axis_types)
    if len(types) > 1:
        raise ValueError(
            f"shardings must be on a mesh with axes of one type, got {mesh}; make all its axes "
            "AxisType.Auto or all AxisType.Explicit"
        )
    explicit = AxisType.Explicit in types
    constrain = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    return constrain(tree, shardings)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None)


def _checked_sharding(path: Any, leaf: Any) -> NamedSharding:
    given = _sharding(leaf)
    if not isinstance(given, NamedSharding):
        raise TypeError(
            f"params{keystr(path)} must be on a mesh, with a NamedSharding, got {given!r}; pass "
            "shardings, or replicate it: jax.device_put(params, jax.NamedSharding(mesh, jax.P()))"
        )
    return given


def _as_tree(shardings: Any, tree: Any) -> Any:
    """Repeats a single sharding for all leaves of ``tree``."""
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda _: shardings, tree)
    return shardings


def _checked_mesh(shardings: Any, tree: Any, like: str) -> Any:
    """The mesh of ``shardings``, a tree of ``NamedSharding`` like ``tree``; None without leaves."""
    _validate_trees.same_structure("shardings", shardings, tree, like=like)
    mesh = None
    for path, sharding in tree_leaves_with_path(shardings):
        name = f"shardings{keystr(path)}"
        if not isinstance(sharding, NamedSharding):
            raise TypeError(
                f"{name} must be a NamedSharding, got {sharding!r}; make one with "
                "jax.NamedSharding(mesh, spec)"
            )
        if mesh is not None and sharding.mesh != mesh:
            raise ValueError(
                f"{name} must be on the mesh of the others, {mesh}, got {sharding.mesh}; use one "
                "mesh for all"
            )
        mesh = sharding.mesh
    return mesh
