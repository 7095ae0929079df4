"""Adding updates to parameters, to those in bfloat16 without bias."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path
from jax.typing import ArrayLike

from rmsprop_jax import _accumulator, _checks, _rounding


def apply_updates(
    params: optax.Params, updates: optax.Updates, step: ArrayLike | None = None
) -> optax.Params:
    """Adds updates to parameters: ``optax.apply_updates``, which in bfloat16 does not stand still.

    A bfloat16 number near one has neighbours 0.004 and 0.008 away. Rounded to nearest, an
    update less than half of that is lost, at every step again. Here the sum, formed in
    float32, is rounded up or down at random so that its mean is right: of updates of a
    hundredth of the spacing, one in a hundred moves the parameter, by all of it. The
    spread that this adds to a parameter's path is that of a random walk of such moves.

    Args:
      params: The parameters. Those not in bfloat16 are as from ``optax.apply_updates``.
      updates: The updates, of the same structure and shapes; bfloat16 parameters may have
        float32 updates.
      step: A whole number that differs at every call: your loop's counter, given to a
        compiled step as an argument. What is random is a hash of it, the leaf's path and the
        element's index, and so the same on any layout of devices and after a restart.
        ``None`` will do where no parameter is in bfloat16.

    Returns:
      The new parameters, in the dtypes of ``params``.

    Raises:
      ValueError: If a parameter is in bfloat16 and ``step`` is missing or an array, or inside
        ``jax.shard_map`` without `sharding.local_shards`.
      TypeError: If ``step`` is not a whole number.
      AssertionError: From chex, if structures or shapes differ.

    Example:
      Five hundred steps of 1e-4 are 0.05. Rounded to nearest nothing moves.

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
    _checks.check_shapes("updates", updates, params, like="params")
    count: Any = step
    if step is not None:
        _checks.check_step(step)
        if not isinstance(step, jax.Array):
            # A hash takes 32 bits.
            count = jnp.uint32(int(count) % 2**32)

    def apply(path: Any, p: Any, u: Any) -> Any:
        if jnp.result_type(p) != jnp.bfloat16:
            return optax.apply_updates(p, u)
        if count is None:
            raise ValueError(
                f"params{keystr(path)} is bfloat16, which needs step, the number of the step: call "
                "apply_updates(params, updates, step); to round to nearest, optax.apply_updates"
            )
        total = _accumulator.widen(p) + _accumulator.widen(u)
        noise = _rounding.noise(total.shape, count, "params", path)
        return _rounding.to_bfloat16(total.astype(jnp.float32), noise)

    return tree_map_with_path(apply, params, updates)
