"""From unchecked transformations to public ones: what comes in is checked and put into shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path

from rmsprop_jax import _storage, _trees, _validate
from rmsprop_jax._numerics import widen


def checked(
    tx: optax.GradientTransformation, *, uses_params: bool = False
) -> optax.GradientTransformationExtraArgs:
    """A public transformation of an unchecked one.

    ``tx`` sees gradients in at least float32 and a state that fits them, and, if it
    ``uses_params``, such parameters. Each update is rounded once, to the wider of its gradient's
    and its parameter's dtype.
    """
    layout = _Layout.of(tx)

    def init(params: Any) -> Any:
        return tx.init(tree_map_with_path(_with_state, params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args  # for other transformations in the chain
        given, treedef = _trees.flatten(updates)
        params_leaves = _trees.flatten_like(treedef, params)
        if uses_params and params is not None and params_leaves is None:
            _validate.same_structure("params", params, updates, like="updates")
        like = params_leaves or [None] * len(given)
        gradients = [
            None if g is None else _gradient(i, g, p, updates)
            for i, (g, p) in enumerate(zip(given, like, strict=True))
        ]
        updates = treedef.unflatten(gradients)
        state = layout.fit(state, updates, treedef, params)
        if uses_params and params is not None:
            params = treedef.unflatten(_wide_params(gradients, like, updates))

        wide = treedef.unflatten([None if g is None else widen(g) for g in gradients])
        updates, state = tx.update(wide, state, params if uses_params else None)
        scaled = treedef.flatten_up_to(updates)
        gradients = [g0 if g is None else g for g, g0 in zip(gradients, given, strict=True)]
        rounded = [_as_given(*row) for row in zip(scaled, gradients, like, strict=True)]
        return treedef.unflatten(rounded), state

    return optax.GradientTransformationExtraArgs(init, update)


def _with_state(path: Any, param: Any) -> Any:
    """A parameter, or None for a leaf that has no state."""
    _validate.known_leaf(f"params{keystr(path)}", param)
    return param if _trees.has_gradient(param) else None


def _gradient(i: int, g: Any, param: Any, updates: Any) -> jax.Array | None:
    """The gradient as an array, None where there is none."""
    trained = param is None or _trees.has_gradient(param)
    if getattr(g, "dtype", None) == _trees.FLOAT0 and not (trained and param is not None):
        return None
    if trained and _trees.has_gradient(g):
        return g if isinstance(g, jax.Array) else jnp.asarray(g)
    path = keystr(_trees.paths_of(updates)[i])
    if not trained:
        raise TypeError(
            f"updates{path} is a gradient, but params{path} is {_kind(param)}, which is not "
            "trained: give None there, as equinox.filter_grad does, or leave it out by optax.masked"
        )
    _validate.known_leaf(f"updates{path}", g)
    raise TypeError(f"updates{path} must be a floating-point array, or None, got {_kind(g)}")


def _kind(leaf: Any) -> str:
    return f"of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else repr(leaf)[:60]


def _wide_params(gradients: list[Any], params: list[Any], updates: Any) -> list[Any]:
    """The parameters that have a gradient, in at least float32."""
    for i, (g, p) in enumerate(zip(gradients, params, strict=True)):
        if g is not None and g.shape != jnp.shape(p):
            path = keystr(_trees.paths_of(updates)[i])
            _validate.shape(f"updates{path}", g, p, like=f"params{path}")
    return [None if g is None else widen(p) for g, p in zip(gradients, params, strict=True)]


def _as_given(update: Any, g: Any, param: Any) -> Any:
    """An update in the dtype that it is to have."""
    if update is None:
        # To be added to an integer, what jax.grad has for it must be a zero of its dtype.
        is_float0 = getattr(g, "dtype", None) == _trees.FLOAT0
        return jnp.zeros_like(param) if is_float0 and _is_integer(param) else None
    dtype = g.dtype
    if param is not None and getattr(param, "dtype", None) != dtype:
        dtype = jnp.result_type(g, param)
    return update if update.dtype == dtype else update.astype(dtype)


def _is_integer(param: Any) -> bool:
    return param is not None and jnp.result_type(param).kind in "biu"


class _Layout(NamedTuple):
    """How a state is built: its containers, and which of its leaves are trees of averages.

    Attributes:
      containers: The structure of the state of one parameter.
      leaves: What stands in it: an average, which has the parameter's shape (1,), or a step.
    """

    containers: Any
    leaves: list[Any]

    @classmethod
    def of(cls, tx: optax.GradientTransformation) -> "_Layout":
        one = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((1,), jnp.float32))
        leaves, containers = jax.tree.flatten(one, is_leaf=_storage.is_one_byte)
        return cls(containers, leaves)

    def fit(self, state: Any, updates: Any, treedef: Any, params: Any) -> Any:
        """The state, rebuilt if it came back in other containers; an error if it is another's."""
        expected = self._expected(treedef, treedef.flatten_up_to(updates))
        wanted, structure = jax.tree.flatten(expected)
        found = _trees.flatten_like(structure, state)
        if found is not None and all(map(_is_what_is_wanted, found, wanted)):
            return state
        if params is not None and _trees.flatten_like(treedef, params) is None:
            _validate.same_structure("updates", updates, params, like="params")
        try:
            return _rebuild(state, expected)
        except _DiffersError:
            like = "init(params) for these updates"
            _validate.same_structure("state", state, expected, like, hint=_validate.OTHER_STATE)
            raise

    def _expected(self, treedef: Any, gradients: list[Any]) -> Any:
        def like_updates(average: Any) -> Any:
            # Without a gradient the state may have anything; of a complex one, two parts.
            free = [g is None or jnp.iscomplexobj(g) for g in gradients]
            return treedef.unflatten(_ANYTHING if is_free else average for is_free in free)

        return self.containers.unflatten(
            leaf if _is_step(leaf) else like_updates(leaf) for leaf in self.leaves
        )


def _is_what_is_wanted(found: Any, wanted: Any) -> bool:
    return wanted is _ANYTHING or jax.tree.structure(found) == _LEAF


class _DiffersError(ValueError):
    """A state has other leaves than it should."""


_ANYTHING = object()
_LEAF = jax.tree.structure(0)


def _rebuild(given: Any, expected: Any) -> Any:
    """``given`` in the containers of ``expected``.

    A checkpoint that is restored without a target has lists instead of tuples, and dictionaries
    or lists instead of named tuples. Children are found by name, and in a list by position.
    """
    children, treedef = _one_level(expected)
    if treedef == _LEAF and not (given is None and _is_step(expected)):
        return given
    found, _ = _one_level(given)
    nameless = isinstance(given, list | tuple) and not hasattr(given, "_fields")
    if nameless and isinstance(expected, tuple) and len(found) == len(children):
        found = dict(zip(children, found.values(), strict=True))
    if found.keys() != children.keys():
        raise _DiffersError
    return treedef.unflatten(_rebuild(found[name], child) for name, child in children.items())


def _is_step(leaf: Any) -> bool:
    return leaf is not _ANYTHING and leaf.shape == ()


def _one_level(node: Any) -> tuple[dict[str, Any], Any]:
    """The children of a node by name."""
    below, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return {keystr(path, simple=True): child for path, child in below}, treedef
