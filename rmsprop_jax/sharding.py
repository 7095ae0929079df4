"""Where the state lives on a mesh: from where the parameters live, or spread by ZeRO-1.

`jit` does the rest. It wants to know where its results are to lie (``out_shardings``), and
Orbax, with the shapes, where to restore to.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from rmsprop_jax import _storage, _validate
from rmsprop_jax._storage import shard_map_specs as local_shards

__all__ = ["constrain", "local_shards", "of_state", "spread"]


def of_state(
    optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None
) -> Any:
    """The shardings of a state: averages like their parameter, the rest on all devices.

    Args:
      optimizer: An Optax transformation, a chain or a wrapper included, that
        ``optax.tree_map_params`` knows; not ``optax.flatten`` or ``optax.partition`` by a function.
      params: The parameters, or ``jax.ShapeDtypeStruct`` of them.
      shardings: A tree of ``NamedSharding`` like ``params``, or one for all leaves; ``None`` means
        those that ``params`` have. `spread` gives those of ZeRO-1.

    Returns:
      A tree of ``NamedSharding`` like ``optimizer.init(params)``, for ``out_shardings`` of
      ``jax.jit`` and, with shapes in ``jax.ShapeDtypeStruct``, for Orbax. What has another shape
      than its parameter, as the factored averages of Adafactor, is on all devices, and so are the
      scalars of averages in one byte.

    Raises:
      TypeError: If a sharding is missing or not a ``NamedSharding``.
      ValueError: If shardings are of several meshes, or ``params`` has no leaves.
      AssertionError: From chex, if ``shardings`` is not a tree like ``params``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> rows = NamedSharding(mesh, PartitionSpec("data"))
      >>> params = jax.device_put({"w": jnp.ones((16, 4))}, rows)
      >>> optimizer = rmsprop(1e-3, bias_correction=True)
      >>> places = sharding.of_state(optimizer, params)
      >>> places[0].nu["w"] == rows, places[0].count.is_fully_replicated
      (True, True)
      >>> state = jax.jit(optimizer.init, out_shardings=places)(params)
      >>> state[0].nu["w"].sharding == rows
      True
    """
    if shardings is None:
        shardings = tree_map_with_path(_known_sharding, params)
    shardings = _for_all(shardings, params)
    mesh = _checked_mesh(shardings, params, "params")
    if mesh is None:
        raise ValueError("params has no leaves, and so no mesh")
    whole = NamedSharding(mesh, PartitionSpec())
    # Without shardings of their own: on an Explicit mesh `init` would want to be inside it.
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)

    def of_average(kept: Any, param: Any, sharding: Any) -> Any:
        # One byte has a scale of its own; what is masked has no leaves.
        return jax.tree.map(lambda x: sharding if x.shape == param.shape else whole, kept)

    return optax.tree_map_params(
        optimizer,
        of_average,
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        shardings,
        transform_non_params=lambda _: whole,
        is_leaf=lambda x: _storage.is_one_byte(x) or isinstance(x, optax.MaskedNode),
    )


def spread(params: optax.Params, mesh: Mesh, axis: str = "data") -> Any:
    """Shardings that cut each leaf along its largest axis that divides by an axis of the mesh.

    Parameters that are put there are fully sharded. Parameters left whole, with their state put
    there, are ZeRO-1: each device holds its part of the state, takes its part of the sum of the
    gradients, and all gather the parameters that come out.

    Args:
      params: The parameters, or ``jax.ShapeDtypeStruct`` of them. What a ``NamedSharding`` of
        ``mesh`` has cut along other axes stays cut, and is spread further.
      mesh: The devices.
      axis: The axis of ``mesh`` to spread over.

    Returns:
      A tree of ``NamedSharding`` like ``params``. Of axes of one size, the first is cut.

    Raises:
      ValueError: If ``mesh`` has no such axis.

    Warns:
      UserWarning: If no axis of a leaf divides; it names the leaf, which stays whole on each
        device. Leaves with fewer elements than there are devices are not mentioned.

    Example:
      ZeRO-1 in three lines: where the parameters' parts would lie, the state there, and the
      gradients brought there before the update.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> everywhere = NamedSharding(mesh, PartitionSpec())
      >>> params = jax.device_put({"w": jnp.ones((4, 16))}, everywhere)
      >>> optimizer = rmsprop(0.1)
      >>> parts = sharding.spread(params, mesh)
      >>> parts["w"].spec[1]
      'data'
      >>> places = sharding.of_state(optimizer, params, parts)
      >>> state = jax.jit(optimizer.init, out_shardings=places)(params)
      >>> def step(params, state, x):
      ...     gradients = jax.grad(lambda params: jnp.sum((x @ params["w"]) ** 2))(params)
      ...     gradients = sharding.constrain(gradients, parts)
      ...     updates, state = optimizer.update(gradients, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(everywhere, places))
      >>> x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data")))
      >>> params, state = step(params, state, x)
      >>> state[0].nu["w"].sharding == parts["w"], params["w"].sharding == everywhere
      (True, True)

    References:
      Rajbhandari et al., `ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
      <https://arxiv.org/abs/1910.02054>`_, 2020.
    """
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the mesh's, {mesh.axis_names}, got {axis!r}")
    parts, uncut = mesh.shape[axis], []

    def place(path: Any, leaf: Any) -> NamedSharding:
        shape, given = jnp.shape(leaf), _sharding(leaf)
        is_cut = isinstance(given, NamedSharding) and given.mesh.shape == mesh.shape
        spec: list[Any] = [*given.spec] if is_cut else []
        memory = given.memory_kind if is_cut else None
        if axis in jax.tree.leaves(spec):
            return NamedSharding(mesh, given.spec, memory_kind=memory)
        spec += [None] * (len(shape) - len(spec))
        free = [i for i, size in enumerate(shape) if spec[i] is None and size % parts == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = axis
        elif math.prod(shape) >= parts > 1:
            uncut.append(f"params{keystr(path)} {shape}")
        return NamedSharding(mesh, PartitionSpec(*spec), memory_kind=memory)

    shardings = tree_map_with_path(place, params)
    if uncut:
        warnings.warn(
            f"no free axis divides by the {parts} devices of {axis!r}, so these are not spread: "
            + ", ".join(uncut),
            stacklevel=2,
        )
    return shardings


def constrain(tree: Any, shardings: Any) -> Any:
    """Says inside ``jit`` where arrays are to be, on a mesh of Auto or of Explicit axes.

    Given the gradients of ZeRO-1, it turns their sum on all devices into a sum of which each
    gets its part. No value is changed.

    Args:
      tree: A tree of arrays.
      shardings: A tree of ``NamedSharding`` like it, or one for all leaves.

    Returns:
      The arrays, placed. See `spread` for an example.

    Raises:
      TypeError: If a sharding is not a ``NamedSharding``.
      ValueError: If the mesh has Auto and Explicit axes.
      AssertionError: From chex, if ``shardings`` is not a tree like ``tree``.
    """
    shardings = _for_all(shardings, tree)
    mesh = _checked_mesh(shardings, tree, "tree")
    types = set() if mesh is None else set(mesh.axis_types)
    if len(types) > 1:
        raise ValueError(f"shardings must be on a mesh with axes of one type, got {mesh}")
    explicit = AxisType.Explicit in types
    place = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
    return place(tree, shardings)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None)


def _known_sharding(path: Any, leaf: Any) -> NamedSharding:
    given = _sharding(leaf)
    if not isinstance(given, NamedSharding):
        raise TypeError(
            f"params{keystr(path)} must be on a mesh, with a NamedSharding, got {given!r}; give "
            "shardings, or jax.device_put(params, jax.NamedSharding(mesh, jax.P()))"
        )
    return given


def _for_all(shardings: Any, tree: Any) -> Any:
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda _: shardings, tree)
    return shardings


def _checked_mesh(shardings: Any, tree: Any, like: str) -> Any:
    """The mesh of a tree of ``NamedSharding`` that is as ``tree`` is."""
    _validate.same_structure("shardings", shardings, tree, like=like)
    mesh = None
    for path, sharding in tree_leaves_with_path(shardings):
        name = f"shardings{keystr(path)}"
        if not isinstance(sharding, NamedSharding):
            raise TypeError(f"{name} must be a NamedSharding, got {sharding!r}")
        if mesh is not None and sharding.mesh != mesh:
            raise ValueError(
                f"{name} must be on the mesh of the others, {mesh}, got {sharding.mesh}"
            )
        mesh = sharding.mesh
    return mesh
