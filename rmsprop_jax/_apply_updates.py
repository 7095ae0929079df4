"""Adds updates to parameters, with stochastic rounding where those are bfloat16."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr
from jax.typing import ArrayLike

from rmsprop_jax import _storage, _trees, _validate, _validate_trees
from rmsprop_jax._numerics import widen


def apply_updates(params: Any, updates: Any, step: ArrayLike | None = None) -> Any:
    """``optax.apply_updates``, with stochastic rounding where parameters are bfloat16.

    The neighbours of 1 in bfloat16 are 0.004 below and 0.008 above. With rounding to nearest, an
    update of less than half that spacing is lost, at every step. Here the sum is computed in
    float32 and rounded stochastically, so its expected value is exact: of updates as large as 1 %
    of the spacing, one in a hundred moves the parameter, by a full spacing. This adds a random
    walk of such moves to the parameter's trajectory.

    Args:
      params: The parameters. Other dtypes than bfloat16 are updated by ``optax.apply_updates``.
      updates: The updates, of the same structure and shapes; bfloat16 parameters may have
        float32 updates. None leaves its parameter as it is.
      step: A whole number that differs at every call: your loop's counter, passed to a
        compiled step as an argument. The random bits are a hash of it, the leaf's path and the
        element's index, so they are the same on any layout of devices and after a restart.
        May be ``None`` if no parameter is bfloat16.

    Returns:
      The new parameters, in the dtypes of ``params``.

    Raises:
      ValueError: If a parameter is bfloat16 and ``step`` is missing; if ``step`` is negative or
        not a scalar; if structures or shapes differ.
      TypeError: If ``step`` is not a whole number.

    Example:
      Five hundred steps of 1e-4 add up to 0.05. With rounding to nearest, nothing moves.

      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import apply_updates
      >>> params = rounded_to_nearest = jnp.ones(1000, jnp.bfloat16)
      >>> updates = jnp.full(1000, 1e-4)
      >>> for step in range(500):
      ...     params = apply_updates(params, updates, step)
      ...     rounded_to_nearest = optax.apply_updates(rounded_to_nearest, updates)
      >>> print(f"{params.mean(dtype=float):.3f} {rounded_to_nearest.mean(dtype=float):.3f}")
      1.050 1.000
    """
    leaves, treedef = _trees.flatten(updates)
    old = _trees.flatten_like(treedef, params)
    if old is None:
        _validate_trees.same_structure("updates", updates, params, like="params")
        old = []
    if step is not None:
        _validate.step(step)
    paths = _trees.paths_of(updates)
    rounded = [
        i
        for i, (p, u) in enumerate(zip(old, leaves, strict=True))
        if u is not None and jnp.result_type(p) == jnp.bfloat16
    ]
    shared: Any = None
    slots: dict[int, Any] = dict.fromkeys(range(len(leaves)))
    if rounded:
        found = [(paths[i], jnp.ndim(leaves[i])) for i in rounded]
        shared, of_rounded = _slots(step, found)
        slots |= zip(rounded, of_rounded, strict=True)
    new = [
        _add(p, u, slots[i], shared, keystr(paths[i]))
        for i, (p, u) in enumerate(zip(old, leaves, strict=True))
    ]
    return treedef.unflatten(new)


def _slots(step: Any, leaves: list[tuple[Any, int]]) -> tuple[jax.Array, list[_storage.Slot]]:
    """The random keys of the bfloat16 parameters, and the slot of each in them."""
    if step is None:
        raise ValueError(
            f"params{keystr(leaves[0][0])} is bfloat16, which needs the step: call "
            "apply_updates(params, updates, step), or optax.apply_updates to round to nearest"
        )
    # The hash takes 32 bits.
    bits = step if isinstance(step, jax.Array) else jnp.uint32(int(step) % 2**32)
    shared, (slots,) = _storage.slots(bits, ["params"], leaves, [[]])
    return shared, slots


def _add(p: Any, u: Any, slot: _storage.Slot | None, shared: Any, path: str) -> Any:
    if u is None or p is None:
        return p
    _validate_trees.shape(f"updates{path}", u, p, like=f"params{path}")
    if slot is None:
        return optax.apply_updates(p, u)
    total = (widen(p) + widen(u)).astype(jnp.float32)
    return _storage.to_bfloat16(total, slot.random_bits(shared, total.shape))
