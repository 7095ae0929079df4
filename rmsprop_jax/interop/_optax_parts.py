"""Finds the state of ``optax.rmsprop`` inside another optimizer's state, and replaces it there.

A checkpoint that was restored without a target has no classes: there, named tuples are recognized
by their fields, and a chain by its three elements.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.tree_util import (
    KeyPath,
    keystr,
    tree_flatten_with_path,
    tree_leaves_with_path,
    tree_map_with_path,
)

from rmsprop_jax import _states
from rmsprop_jax._trees import has_gradient
from rmsprop_jax.interop._mapping import Keys, leaf_keys, leaves_of, listed, nested
from rmsprop_jax.interop._records import as_python_numbers
from rmsprop_jax.interop._state import step_as

# This class has no public name in Optax 0.2.8.
_StddevWithCountState: Any = type(
    jax.eval_shape(optax.scale_by_stddev(bias_correction=True).init, {})
)
_QUANTIZED = (_states.ScaleByRmsQuantizedState, _states.ScaleByStddevQuantizedState)
# The classes that each element of the chain of three may have.
_CLASSES: tuple[tuple[Any, ...], ...] = (
    (
        optax.ScaleByRmsState,
        _states.ScaleByRmsWithCountState,
        optax.ScaleByRStdDevState,
        _StddevWithCountState,
        _states.ScaleByStddevState,
        *_QUANTIZED,
    ),
    (optax.EmptyState, optax.ScaleByScheduleState),
    (optax.EmptyState, optax.TraceState, _states.LowPrecisionTraceState),
)
_INDICES = ["0", "1", "2"]
# The counters of `inject_hyperparams` that belong to the learning rate.
_INJECTED_COUNTS = {("count",), ("hyperparams_states", "learning_rate", "count")}


class Part(NamedTuple):
    """The state of RMSprop inside another state.

    Attributes:
      path: Its key path in the outer state.
      node: The state itself, in its own containers.
      state: The same as a chain of Optax's three classes, whose trees are those of ``node``.
      injected: The numbers of the ``inject_hyperparams`` around it; empty without one.
    """

    path: KeyPath
    node: Any
    state: tuple[Any, Any, Any]
    injected: Mapping[str, Any]


def find(name: str, outer: Any) -> Part:
    """The one RMSprop part of ``outer``, which messages call ``name``."""
    parts = list(_parts(outer))
    if not parts:
        raise ValueError(
            f"{name} has no state of optax.rmsprop, a chain of averages, learning rate and "
            f"momentum; it has {listed([*dict.fromkeys(_class_names(outer))])}"
        )
    if len(parts) > 1:
        paths = [f"{name}{keystr(part.path)}" for part in parts]
        raise ValueError(f"{name} has {len(paths)} RMSprop parts: pass one of {listed(paths)}")
    return parts[0]


def replace(outer: Any, part: Part, state: Any, step: int | None) -> Any:
    """``outer`` with ``state`` instead of ``part``, and with ``step`` in the wrapper's counters."""
    children, treedef = _one_level(part.node)
    filled = jax.tree.map(_array_like, state, part.state)
    chain = [_refill(child, filled[int(keystr(key, simple=True))]) for key, child in children]
    outer = _set(outer, part.path, treedef.unflatten(chain))
    if not part.injected or step is None:
        return outer

    def count(path: KeyPath, old: Any) -> Any:
        is_count = _without_value(path) in _INJECTED_COUNTS
        return _array_like(step_as(step, np.asarray(old).dtype), old) if is_count else old

    wrapper = part.path[:-1]
    return _set(outer, wrapper, tree_map_with_path(count, _get(outer, wrapper)))


def with_schedule(part: Part) -> Part:
    """``part`` with the schedule's counter, which ``inject_hyperparams`` keeps outside of it."""
    averages, rate, momentum = part.state
    if not part.injected or not isinstance(rate, optax.EmptyState):
        return part
    own = part.injected.get("hyperparams_states", {}).get("learning_rate", {})
    count = np.asarray(own.get("count", part.injected["count"]))
    return part._replace(state=(averages, optax.ScaleByScheduleState(count), momentum))


def injected_hyperparameters(name: str, part: Part, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters in the ``inject_hyperparams`` around the part, except those ``given``."""
    found = part.injected.get("hyperparams", {})
    if not set(found) <= set(inspect.signature(optax.rmsprop).parameters):
        # They belong to a function of the user's own, and may have other meanings.
        return {}
    scheduled = [n for n in part.injected.get("hyperparams_states", {}) if n not in given]
    if scheduled:
        raise ValueError(
            f"{name}: {scheduled[0]} follows a schedule in inject_hyperparams, and the state has "
            f"only its last value: pass {scheduled[0]}="
        )
    return as_python_numbers({n: value for n, value in found.items() if n not in given})


def trained(params: Any, averages: Any) -> Any:
    """``params`` as RMSprop sees them: masked where ``averages`` are masked.

    Leaves that cannot have an average are None.
    """
    found = tree_leaves_with_path(averages, is_leaf=_is_empty)
    kept = {leaf_keys(path) for path, leaf in found if not _is_empty(leaf)}
    empty = {leaf_keys(path) for path, leaf in found if _is_empty(leaf)}
    prefixes = {
        keys[:n] for keys in leaves_of(params) if keys not in kept for n in range(len(keys) + 1)
    }
    return _masked(params, (), empty & prefixes)


def _masked(node: Any, path: KeyPath, masks: set[Keys]) -> Any:
    if leaf_keys(path) in masks:
        return optax.MaskedNode()
    children, treedef = _one_level(node)
    if _is_leaf(node, children):
        return node if has_gradient(node) else None
    return treedef.unflatten(_masked(child, (*path, *key), masks) for key, child in children)


def _parts(node: Any, path: KeyPath = (), injected: Mapping[str, Any] | None = None) -> Iterator:
    """All RMSprop parts in ``node``, which is at ``path``."""
    children, _ = _one_level(node)
    if state := _as_chain(node, children):
        yield Part(path, node, state, _injected_numbers(injected or {}))
        return
    fields = _fields(node)
    is_injecting = {"count", "hyperparams", "inner_state"} <= set(fields)
    for key, child in [] if _is_leaf(node, children) else children:
        yield from _parts(child, (*path, *key), fields if is_injecting else None)


def _injected_numbers(injected: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that ``inject_hyperparams`` keeps beside the state, in nested dictionaries."""
    around = {name: x for name, x in injected.items() if name != "inner_state"}
    found = nested({_without_value(key): x for key, x in tree_leaves_with_path(around)})
    # A schedule counts, too, if it has no state.
    for name in _fields(around.get("hyperparams_states")):
        found.setdefault("hyperparams_states", {}).setdefault(name, {})
    return found


def _as_chain(node: Any, children: list[tuple[KeyPath, Any]]) -> tuple[Any, Any, Any] | None:
    """``node`` as a chain of averages, learning rate and momentum; None if it is not one."""
    if hasattr(node, "_fields") or not isinstance(node, list | tuple | Mapping):
        return None
    found = {keystr(path, simple=True): child for path, child in children}
    if [*found] != _INDICES:
        # NNX leaves out empty elements. If an empty one is there, none was left out.
        has_empty = any(_is_empty(child) for child in found.values())
        if has_empty or not isinstance(node, Mapping) or not {*found} <= {*_INDICES}:
            return None
    averages, rate, momentum = map(_as_one_of, map(found.get, _INDICES), _CLASSES)
    if averages is None or rate is None or momentum is None:
        return None
    return averages, rate, momentum


def _as_one_of(node: Any, classes: tuple[Any, ...]) -> Any:
    """``node`` as one of ``classes``; None if it is none of them."""
    if type(node) in classes:
        return _with_arrays(node)
    if hasattr(node, "_fields") or not (node is None or isinstance(node, Mapping | list | tuple)):
        return None
    names = set(_fields(node))
    if len(names) != len(node or ()):
        return None
    for cls in classes:
        # Codes without their classes cannot be told from a tree of parameters.
        if cls not in _QUANTIZED and names == set(cls._fields):
            return _with_arrays(cls(**_unwrap_variables(dict(_fields(node)))))
    return None


def _with_arrays(state: Any) -> Any:
    """``state`` with Python numbers as arrays."""
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else np.asarray(x), state)


def _class_names(node: Any) -> Iterator[str]:
    """The classes in a state, or the fields where it has no class."""
    children, _ = _one_level(node)
    if hasattr(node, "_fields"):
        yield type(node).__name__
    elif isinstance(node, Mapping):
        yield f"{{{', '.join(map(str, node))}}}"
    elif _is_leaf(node, children):
        yield type(node).__name__
    for _, child in [] if _is_leaf(node, children) else children:
        yield from _class_names(child)


def _fields(node: Any) -> Mapping[str, Any]:
    """The fields of a named tuple or the items of a dictionary; empty for anything else."""
    if isinstance(node, Mapping):
        return node
    return node._asdict() if hasattr(node, "_asdict") else {}


def _refill(child: Any, state: Any) -> Any:
    """One element of a chain, in its own container, with the fields of ``state``."""
    below, treedef = _one_level(child)
    return treedef.unflatten(
        jax.tree.unflatten(
            jax.tree.structure(old), jax.tree.leaves(getattr(state, keystr(path, simple=True)))
        )
        for path, old in below
    )


def _without_value(path: KeyPath) -> Keys:
    """The keys of a number, without the ``value`` of a variable in which NNX may keep it."""
    keys = leaf_keys(path)
    return keys[:-1] if keys[-1:] == ("value",) else keys


def _unwrap_variables(fields: Any) -> Any:
    """``fields`` without the dictionaries around arrays that were NNX's variables."""

    def is_variable(x: Any) -> bool:
        is_one = isinstance(x, Mapping) and [*x] == ["value"]
        return is_one and not isinstance(x["value"], Mapping | list | tuple)

    leaves = jax.tree.leaves(fields, is_leaf=is_variable)
    if not leaves or not all(map(is_variable, leaves)):
        return fields
    return jax.tree.map(lambda x: x["value"], fields, is_leaf=is_variable)


def _array_like(new: Any, old: Any) -> Any:
    """``new`` as a NumPy array if ``old`` is one, and as a JAX array otherwise."""
    is_numpy = isinstance(old, np.ndarray | np.generic | int)
    return np.asarray(new, np.asarray(old).dtype) if is_numpy else jax.numpy.asarray(new)


def _get(node: Any, path: KeyPath) -> Any:
    for key in path:
        node = next(child for (found,), child in _one_level(node)[0] if found == key)
    return node


def _set(node: Any, path: KeyPath, new: Any) -> Any:
    """``node`` with ``new`` at ``path``."""
    if not path:
        return new
    children, treedef = _one_level(node)
    return treedef.unflatten(
        _set(child, path[1:], new) if key == path[0] else child for (key,), child in children
    )


def _one_level(node: Any) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """The children of a node with their keys, and the treedef that rebuilds it from them."""
    return tree_flatten_with_path(node, is_leaf=lambda x: x is not node)


def _is_leaf(node: Any, children: list[tuple[KeyPath, Any]]) -> bool:
    return len(children) == 1 and children[0][1] is node


def _is_empty(x: Any) -> bool:
    """Whether a mask left nothing: a ``MaskedNode``, which a restored checkpoint may not keep."""
    return x is None or (isinstance(x, Mapping | list | tuple) and not len(x))
