"""Makes public transformations from unchecked ones: checks and casts what they are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_map_with_path

from rmsprop_jax import _trees, _validate_trees
from rmsprop_jax._layout import Layout
from rmsprop_jax._numerics import widen


def checked(
    tx: optax.GradientTransformation, *, uses_params: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Makes a public transformation from an unchecked one.

    ``tx`` gets gradients in at least float32, a state that fits them and, if ``uses_params``,
    parameters in at least float32. Each update is rounded once, to the wider of its gradient's
    and its parameter's dtype.
    """
    layout = Layout.of(tx)

    def init(params: Any) -> Any:
        return tx.init(tree_map_with_path(_none_without_state, params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args  # for other transformations in the chain
        given, treedef = _trees.flatten(updates)
        weights = _trees.flatten_like(treedef, params)
        if weights is None:
            if uses_params and params is not None:
                _validate_trees.same_structure("params", params, updates, like="updates")
            weights = [None] * len(given)
        gradients = [
            None if g is None else _gradient(i, g, w, updates)
            for i, (g, w) in enumerate(zip(given, weights, strict=True))
        ]
        state = layout.fit(state, gradients, treedef, params)

        wide = treedef.unflatten(None if g is None else widen(g) for g in gradients)
        wide_params = None
        if uses_params and params is not None:
            wide_params = treedef.unflatten(_wide_weights(weights, gradients, updates))
        scaled, state = tx.update(wide, state, wide_params)
        rows = zip(treedef.flatten_up_to(scaled), given, weights, strict=True)
        return treedef.unflatten(_cast_update(*row) for row in rows), state

    return optax.GradientTransformationExtraArgs(init, update)


def _none_without_state(path: Any, param: Any) -> Any:
    """The parameter, or None if it is a leaf without state."""
    _validate_trees.known_leaf(f"params{_validate_trees.shown_path(path)}", param)
    return param if _trees.has_gradient(param) else None


def _gradient(i: int, g: Any, weight: Any, updates: Any) -> jax.Array | None:
    """The gradient as an array; None for the float0 that ``jax.grad`` returns for integers."""
    trained = weight is None or _trees.has_gradient(weight)
    if trained and _trees.has_gradient(g):
        return g if isinstance(g, jax.Array) else jnp.asarray(g)
    if _trees.is_float0(g) and (weight is None or not trained):
        return None
    path = _validate_trees.shown_path(_trees.paths_of(updates)[i])
    raise _validate_trees.bad_gradient(path, g, weight, trained=trained)


def _wide_weights(weights: list[Any], gradients: list[Any], updates: Any) -> list[Any]:
    """The parameters that have a gradient, in at least float32."""
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        if g is not None and g.shape != jnp.shape(w):
            path = _validate_trees.shown_path(_trees.paths_of(updates)[i])
            _validate_trees.shape(f"updates{path}", g, w, like=f"params{path}")
    return [None if g is None else widen(w) for w, g in zip(weights, gradients, strict=True)]


def _cast_update(update: Any, g: Any, weight: Any) -> Any:
    """The update in the wider of its gradient's and its parameter's dtype."""
    if update is None:
        # optax.apply_updates can only add a zero of the integer's own dtype to it.
        return jnp.zeros_like(weight) if _trees.is_float0(g) and _is_integer(weight) else None
    dtype = getattr(g, "dtype", None)
    if dtype is None or (weight is not None and getattr(weight, "dtype", None) != dtype):
        dtype = jnp.result_type(g) if weight is None else jnp.result_type(g, weight)
    if jnp.iscomplexobj(update):
        dtype = jnp.result_type(dtype, jnp.complex64)
    return update if update.dtype == dtype else update.astype(dtype)


def _is_integer(weight: Any) -> bool:
    dtype = getattr(weight, "dtype", np.dtype(type(weight)))
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.bool_))
