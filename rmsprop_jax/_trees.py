"""Walks trees of gradients, parameters and states of any structure.

A gradient of None leaves its parameter and its state as they are. Leaves that cannot have a
gradient (integers, booleans, PRNG keys, functions in a model) have None as their state.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import tree_flatten_with_path

from rmsprop_jax import _storage, _validate_trees
from rmsprop_jax._numerics import Scalar, at_least_float32


def has_gradient(leaf: Any) -> bool:
    """Whether ``jax.grad`` can differentiate with respect to a leaf."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float | complex) if dtype is None else _is_inexact(dtype)


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def is_float0(leaf: Any) -> bool:
    """Whether a leaf is the float0 that ``jax.grad(allow_int=True)`` returns for an integer."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def flatten(updates: Any) -> tuple[list[Any], Any]:
    """The leaves of ``updates``, with None as a leaf."""
    return jax.tree.flatten(updates, is_leaf=_is_none)


def paths_of(updates: Any) -> list[Any]:
    """The key paths of the leaves that `flatten` returns."""
    return [path for path, _ in tree_flatten_with_path(updates, is_leaf=_is_none)[0]]


def flatten_like(treedef: Any, tree: Any) -> list[Any] | None:
    """The subtrees of ``tree`` at the leaves of ``treedef``; None if the structures differ."""
    try:
        return treedef.flatten_up_to(tree)
    except ValueError:
        return None


def _is_none(x: Any) -> bool:
    return x is None


def per_leaf(
    leaf_step: Callable[..., tuple[Any, ...]],
    updates: Any,
    averages: Mapping[str, Any],
    *,
    scalars: Sequence[Scalar],
    accumulator_dtype: Any,
    step: jax.Array | None,
    decay: Scalar = 1.0,
) -> tuple[Any, dict[str, Any]]:
    """Calls ``leaf_step`` for each leaf that has a gradient.

    Args:
      leaf_step: A jitted function (shared, gradient, average, ..., slot, ...) -> (update, average,
        ...), where ``shared`` is a vector that begins with the scalars.
      updates: The gradients, each None or an array.
      averages: The averages by name, in the order of ``leaf_step``'s arguments: trees like
        ``updates``, or `Quantized`.
      scalars: The hyperparameters of this step.
      accumulator_dtype: The dtype of the averages.
      step: The step; only needed in low precision.
      decay: The factor by which this step decays the old averages; only needed for `Quantized`.

    Returns:
      The updates, and the new averages.
    """
    gradients, treedef = flatten(updates)
    given = [i for i, g in enumerate(gradients) if g is not None]
    columns = [treedef.flatten_up_to(_storage.arrays(x)) for x in averages.values()]
    for name, column in zip(averages, columns, strict=True):
        _check_averages(name, column, gradients, updates, accumulator_dtype)
    traced = any(isinstance(g, Tracer) for g in gradients)
    next_scales: Sequence[Any] = [None] * len(columns)
    slots: list[Any] = [[None] * len(given)] * len(columns)
    if step is not None and given and _storage.is_low_precision(accumulator_dtype):
        paths = paths_of(updates)
        next_scales, codings = zip(
            *(
                _storage.next_scales(average, column, given, decay)
                for average, column in zip(averages.values(), columns, strict=True)
            ),
            strict=True,
        )
        leaves = [(paths[i], gradients[i].ndim) for i in given]
        merge = traced and not any(codings)
        shared, slots = _storage.slots(step, list(averages), leaves, codings, scalars, merge=merge)
    else:
        shared = _storage.share(scalars, merge=traced)
    rows = []
    for i, *of_leaf in zip(given, *slots, strict=True):
        rows.append(leaf_step(shared, gradients[i], *(column[i] for column in columns), *of_leaf))
        gradients[i] = rows[-1][0]
        if traced and isinstance(rows[-1][-1], tuple):
            shared = _storage.after_on_gpu(shared, rows[-1][-1][-1])
    new = {
        name: _storage.with_stored(
            average, treedef, columns[k], given, [row[1 + k] for row in rows], next_scales[k]
        )
        for k, (name, average) in enumerate(averages.items())
    }
    return treedef.unflatten(gradients), new


def _check_averages(
    name: str, column: list[Any], gradients: list[Any], updates: Any, accumulator_dtype: Any
) -> None:
    """Raises unless each gradient has an average of its shape, in the expected dtype."""
    for i, (g, kept) in enumerate(zip(gradients, column, strict=True)):
        if g is None:
            continue
        same_shape = kept is not None and g.shape == jnp.shape(kept)
        if not same_shape or not _has_expected_dtype(
            name, _dtype_of(kept), g.dtype, accumulator_dtype
        ):
            path = _validate_trees.shown_path(paths_of(updates)[i])
            expected = _expected_dtype(name, g.dtype, accumulator_dtype)
            raise _validate_trees.bad_average(name, path, kept, g, _dtype_of(kept), expected)


def _dtype_of(kept: Any) -> Any:
    if kept is None:
        return None
    return jnp.result_type(kept)


@functools.cache
def _has_expected_dtype(name: str, kept: Any, gradient: Any, accumulator_dtype: Any) -> bool:
    expected = _expected_dtype(name, gradient, accumulator_dtype)
    if kept == expected or accumulator_dtype is not None:
        return kept == expected
    # The average has the parameter's dtype, which may be wider than the gradient's.
    is_complex, expects_complex = (jnp.issubdtype(x, jnp.complexfloating) for x in (kept, expected))
    # A complex parameter may have a real gradient. Averages of squares are always real.
    fits = is_complex == expects_complex or (is_complex and name in ("mu", "trace"))
    return _is_inexact(kept) and fits and at_least_float32(kept) == kept


def _expected_dtype(name: str, dtype: Any, accumulator_dtype: Any) -> Any:
    return _storage.kept_dtype(dtype, accumulator_dtype, nonnegative=name in ("nu", "var"))
