"""Raises if trees, leaves and states do not fit, as `_validate` does for arguments."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from rmsprop_jax import _validate


def known_leaf(name: str, leaf: Any) -> None:
    """Raises if a leaf is an array of another library, which is not an array to JAX."""
    dtype: Any = getattr(leaf, "dtype", None)
    try:
        jnp.issubdtype(dtype, jnp.inexact)
    except TypeError:
        raise TypeError(
            f"{name} must be a JAX or NumPy array, got {type(leaf).__name__} of dtype {dtype!r}: "
            "convert it with jnp.asarray"
        ) from None


def shape(name: str, leaf: Any, expected: Any, like: str) -> None:
    """Raises unless a leaf has the shape of ``expected``."""
    if jnp.shape(leaf) != jnp.shape(expected):
        raise ValueError(_other_shape(name, leaf, expected, like))


def _other_shape(name: str, leaf: Any, expected: Any, like: str) -> str:
    return f"{name} has shape {jnp.shape(leaf)}, but must have {jnp.shape(expected)}, like {like}"


def bad_gradient(path: str, g: Any, weight: Any, *, trained: bool) -> TypeError:
    """The error for a bad gradient, or for one of a parameter that is not trained."""
    leaf = g if trained else weight
    kind = f"of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else _validate.shown(leaf)
    if trained:
        return TypeError(
            f"updates{path} must be a floating-point JAX or NumPy array, or None; got {kind}"
        )
    return TypeError(
        f"updates{path} is a gradient, but params{path} is {kind}, which is not trained: give "
        "None there, as equinox.filter_grad does, or mask it with optax.masked"
    )


def bad_average(name: str, path: str, kept: Any, g: Any, dtype: Any, expected: Any) -> ValueError:
    """The error for an average that does not fit its gradient."""
    if kept is None:
        return ValueError(
            f"updates{path} is a gradient, but the state has no average for it: init saw no "
            "floating-point array there; give None as its gradient"
        )
    if g.shape != jnp.shape(kept):
        return ValueError(_other_shape(f"updates{path}", g, kept, f"{name}{path} in the state"))
    return ValueError(
        f"state: {name}{path} is {dtype}, but must be {expected}: give the accumulator_dtype of "
        "init; to continue in another, cast the state"
    )


def same_structure(name: str, tree: Any, expected: Any, like: str, hint: str = "") -> None:
    """Raises unless ``tree`` has the structure of ``expected``."""
    if jax.tree.structure(tree) == jax.tree.structure(expected):
        return
    paths, expected_paths = (
        {keystr(path): None for path, _ in tree_leaves_with_path(t)} for t in (tree, expected)
    )
    missing = [path for path in expected_paths if path not in paths]
    extra = [path for path in paths if path not in expected_paths]
    difference = "the leaves are the same, but their containers differ"
    if missing or extra:
        difference = f"missing leaves: {few(missing)}; unexpected leaves: {few(extra)}"
    raise ValueError(f"{name} must have the structure of {like}: {difference}{hint}")


def shown_path(path: Any) -> str:
    """A key path for a message, only its end if it is long."""
    text = keystr(path)
    return text if len(text) <= 60 else f"...{text[-57:]}"


def few(paths: list[str]) -> str:
    """The first three, and how many more there are, for a message."""
    shown = ", ".join(path if len(path) <= 40 else f"...{path[-37:]}" for path in paths[:3])
    return (shown or "none") + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def is_counter(x: Any) -> bool:
    """Whether ``x`` can count steps: an integer of shape ()."""
    return jnp.shape(x) == () and jnp.issubdtype(jnp.result_type(x), jnp.integer)


def counter(x: Any) -> None:
    """Raises unless ``x`` can count steps."""
    if not is_counter(x):
        raise ValueError(
            f"a step counter in the state must be an integer of shape (), got {jnp.result_type(x)} "
            f"of shape {jnp.shape(x)}"
        )
