"""The structure of a state, and how one from a checkpoint gets its containers back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from rmsprop_jax import _trees, _validate_trees


class Layout(NamedTuple):
    """The structure of a state: its containers, and what each of its leaves is.

    Attributes:
      containers: The structure of the state of a single parameter.
      leaves: Its leaves. Their shape says what they are: (1, 1) for an average, (1,) for a vector
        with one number per parameter leaf, () for a step counter.
    """

    containers: Any
    leaves: list[Any]

    @classmethod
    def of(cls, tx: optax.GradientTransformation) -> "Layout":
        """The layout of the states of ``tx``."""
        one = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((1, 1), jnp.float32))
        leaves, containers = jax.tree.flatten(one)
        return cls(containers, leaves)

    def fit(self, state: Any, gradients: list[Any], treedef: Any, params: Any) -> Any:
        """The state, rebuilt if its containers differ; raises if another optimizer made it."""
        parts = _trees.flatten_like(self.containers, state)
        if parts is not None and all(
            _fits(part, leaf, gradients, treedef)
            for part, leaf in zip(parts, self.leaves, strict=True)
        ):
            return state
        if params is not None and _trees.flatten_like(treedef, params) is None:
            updates = treedef.unflatten(gradients)
            _validate_trees.same_structure("updates", updates, params, like="params")
        expected = self._expected(gradients, treedef)
        try:
            state = _rebuild(state, expected)
        except _DiffersError:
            hint = "; use the options of the optimizer that made it"
            if any(keystr(path[1:2]) == ".var" for path, _ in tree_leaves_with_path(expected)):
                hint += " (interop.optax converts Optax's centred state)"
            like = "init(params) for these updates"
            _validate_trees.same_structure("state", state, expected, like, hint)
            raise
        for part, leaf in zip(self.containers.flatten_up_to(state), self.leaves, strict=True):
            if _is_step(leaf):
                _validate_trees.counter(part)
        return state

    def _expected(self, gradients: list[Any], treedef: Any) -> Any:
        def like_updates(average: Any) -> Any:
            return treedef.unflatten(_ANY_STATE if _is_unchecked(g) else average for g in gradients)

        return self.containers.unflatten(
            like_updates(leaf) if _is_average(leaf) else leaf for leaf in self.leaves
        )


def _fits(part: Any, leaf: Any, gradients: list[Any], treedef: Any) -> bool:
    """Whether ``part`` of a state has the structure that ``leaf`` of the layout asks for."""
    if not _is_average(leaf):
        is_array = jax.tree.structure(part) == _LEAF
        return is_array and (not _is_step(leaf) or _validate_trees.is_counter(part))
    averages = _trees.flatten_like(treedef, part)
    return averages is not None and all(
        _is_unchecked(g) or jax.tree.structure(average) == jax.tree.structure(leaf)
        for average, g in zip(averages, gradients, strict=True)
    )


def _is_unchecked(g: Any) -> bool:
    """Whether the averages of a gradient may have any structure.

    Nothing reads those of a gradient of None. `dialects.pytorch` keeps two for a complex one.
    """
    return g is None or jnp.iscomplexobj(g)


class _DiffersError(ValueError):
    """A state does not have the leaves that it should have."""


_ANY_STATE = object()
_LEAF = jax.tree.structure(0)


def _rebuild(given: Any, expected: Any) -> Any:
    """Puts the leaves of ``given`` into the containers of ``expected``.

    A checkpoint that is restored without a target has lists instead of tuples, and dictionaries
    or lists instead of named tuples. Children are matched by name, in a list by position.
    """
    children, treedef = _one_level(expected)
    if treedef == _LEAF:
        # `per_leaf` reports a missing average, together with its gradient.
        if expected is _ANY_STATE or (given is None and _is_average(expected)):
            return given
        if jax.tree.structure(given) != _LEAF:
            raise _DiffersError("a container instead of an array")
        return given
    found, _ = _one_level(given)
    by_position = isinstance(given, list | tuple) and not hasattr(given, "_fields")
    if by_position and isinstance(expected, tuple) and len(found) == len(children):
        found = dict(zip(children, found.values(), strict=True))
    if found.keys() != children.keys():
        raise _DiffersError("different children")
    return treedef.unflatten(_rebuild(found[name], child) for name, child in children.items())


def _is_step(leaf: Any) -> bool:
    return leaf is not _ANY_STATE and leaf.shape == ()


def _is_average(leaf: Any) -> bool:
    return leaf is not _ANY_STATE and leaf.shape == (1, 1)


def _one_level(node: Any) -> tuple[dict[str, Any], Any]:
    """The children of a node by name."""
    below, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return {keystr(path, simple=True): child for path, child in below}, treedef
