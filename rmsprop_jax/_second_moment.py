"""Finds the averages of squares in an optimizer's state, in any wrapper and format."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import optax

from rmsprop_jax import _states, _storage
from rmsprop_jax._numerics import widen


def second_moment(state: Any) -> Any:
    r"""The moving averages of squares in an optimizer's state, in at least float32.

    That is v, or for a centred optimizer the variance :math:`v - |m|^2`, as the state holds it:
    v before bias correction, the variance after it.

    Args:
      state: The state of any optimizer of this package, dialects included, or of
        ``optax.rmsprop`` if it is not centred; in any ``accumulator_dtype``, inside
        ``optax.chain``, ``inject_hyperparams``, ``MultiSteps``, ``apply_if_finite``, ``masked`` or
        ``partition``; or an ``nnx.Optimizer`` or a ``TrainState``. It may be traced and sharded.

    Returns:
      A tree like the parameters, with None at leaves that another optimizer trains.

    Raises:
      ValueError: If ``state`` has no such average, or more than one for a parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, second_moment
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> optimizer = rmsprop(0.1, accumulator_dtype="float8_e5m2")
      >>> _, state = optimizer.update(params, optimizer.init(params), params)
      >>> print({path: v.dtype for path, v in second_moment(state).items()})
      {'w': dtype('float32')}
    """
    return functools.reduce(_merge, (values(found) for found in averages(state)))


def averages(state: Any) -> list[Any]:
    """The averages of squares in a state, each a tree of arrays or a `Quantized`."""
    state = getattr(state, "opt_state", state)
    nodes = list(_nodes(state))
    found = [getattr(node, _FIELDS[type(node)]) for node in nodes if type(node) in _FIELDS]
    if not found:
        names = {type(node).__name__ for node in nodes if hasattr(node, "_fields")}
        raise ValueError(
            "state must be that of an RMSprop of this package, or of "
            "optax.rmsprop(centered=False); "
            f"found {', '.join(sorted(names)) or type(state).__name__}"
        )
    return found


# The states that hold averages of squares, and in which field.
_FIELDS: dict[Any, str] = {
    optax.ScaleByRmsState: "nu",
    _states.ScaleByRmsWithCountState: "nu",
    _states.ScaleByRmsQuantizedState: "nu_quantized",
    _states.ScaleByStddevState: "var",
    _states.ScaleByStddevQuantizedState: "var_quantized",
}


def _nodes(tree: Any) -> Iterator[Any]:
    """The nodes of a tree from the top down to the states in `_FIELDS`."""
    yield tree
    if type(tree) not in _FIELDS:
        for child in jax.tree.leaves(tree, is_leaf=lambda x: x is not tree):
            if child is not tree:
                yield from _nodes(child)


def values(averages: Any) -> Any:
    """Averages in at least float32, None where another optimizer trains the parameter."""
    values = _storage.dequantize(averages) if _storage.is_quantized(averages) else averages
    return jax.tree.map(lambda x: None if _is_masked(x) else widen(x), values, is_leaf=_is_masked)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _merge(a: Any, b: Any) -> Any:
    """Merges two trees, each with None where the other has a value."""
    if a is None or b is None:
        return b if a is None else a
    if jax.tree_util.all_leaves([a]) or jax.tree_util.all_leaves([b]):
        raise ValueError("state has two averages of squares for one parameter; give one of them")
    left, treedef = jax.tree.flatten(a, is_leaf=lambda x: x is not a)
    right = treedef.flatten_up_to(b)
    return treedef.unflatten(map(_merge, left, right))
