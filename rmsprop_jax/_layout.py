"""How a state is built; a checkpoint's is put back into its containers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from rmsprop_jax import _storage, _trees, _validate


class Layout(NamedTuple):
    """How a state is built: its containers, and which of its leaves are trees of averages.

    Attributes:
      containers: The structure of the state of one parameter.
      leaves: What stands in it: an average, which has the parameter's shape (1,), or a step.
    """

    containers: Any
    leaves: list[Any]

    @classmethod
    def of(cls, tx: optax.GradientTransformation) -> "Layout":
        """That of the states of ``tx``."""
        one = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((1,), jnp.float32))
        leaves, containers = jax.tree.flatten(one, is_leaf=_storage.is_one_byte)
        return cls(containers, leaves)

    def fit(self, state: Any, gradients: list[Any], treedef: Any, params: Any) -> Any:
        """The state, rebuilt if it came back in other containers; an error if it is another's."""
        expected = self._expected(gradients, treedef)
        wanted, structure = jax.tree.flatten(expected)
        found = _trees.flatten_like(structure, state)
        if found is not None and all(map(_is_what_is_wanted, found, wanted)):
            return state
        if params is not None and _trees.flatten_like(treedef, params) is None:
            updates = treedef.unflatten(gradients)
            _validate.same_structure("updates", updates, params, like="params")
        try:
            return _rebuild(state, expected)
        except _DiffersError:
            like = "init(params) for these updates"
            hint = "; the options must be those of the optimizer that made it"
            _validate.same_structure("state", state, expected, like, hint)
            raise

    def _expected(self, gradients: list[Any], treedef: Any) -> Any:
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
