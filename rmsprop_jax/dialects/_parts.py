"""The unchecked transformations that dialects are composed of."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _numerics, _transform, _validate


def averages(
    decay: ArrayLike,
    eps: ArrayLike,
    centered: bool,
    accumulator_dtype: DTypeLike | None,
    *,
    eps_in_sqrt: bool,
    initial_scale: float = 0.0,
) -> optax.GradientTransformation:
    """Divides each gradient by its root mean square, or by its standard deviation."""
    _validate.flag(centered=centered)
    _validate.accumulator_dtype(accumulator_dtype)
    scale_by: Any = _transform.stddev if centered else _transform.rms
    return scale_by(
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_in_sqrt,
        accumulator_dtype=accumulator_dtype,
    )


def heavy_ball(
    momentum: ArrayLike, accumulator_dtype: DTypeLike | None
) -> optax.GradientTransformation:
    """Momentum as in the frameworks: at 0 there is no buffer."""
    if none_at_zero(momentum) is None:
        return optax.identity()
    return _transform.trace(momentum=momentum, accumulator_dtype=accumulator_dtype)


def none_at_zero(momentum: ArrayLike) -> ArrayLike | None:
    """The momentum, or None if it is 0, where the frameworks keep no buffer."""
    _validate.fraction(momentum=momentum)
    return None if _validate.is_zero(momentum) else momentum


def l2(*, mask: Any = None, **weight_decay: ArrayLike | None) -> optax.GradientTransformation:
    """Weight decay as an L2 penalty, ``g + weight_decay * w``, before the averages."""
    return _decay(weight_decay, mask=mask)


def decoupled(
    *, learning_rate: Any, mask: Any = None, **weight_decay: ArrayLike | None
) -> optax.GradientTransformation:
    """Weight decay that enters no average, at the end of a chain."""
    return _decay(weight_decay, learning_rate=learning_rate, mask=mask)


def _decay(named: dict[str, Any], **options: Any) -> optax.GradientTransformation:
    ((name, value),) = named.items()
    if value is None:
        return optax.identity()
    return _transform.decayed_weights(value, name=name, **options)


def clip(**limits: ArrayLike | None) -> optax.GradientTransformation:
    """Clips gradients to the given limits, in this order."""
    given = {name: limit for name, limit in limits.items() if limit is not None}
    _validate.nonnegative(**given)
    steps = [_CLIPPERS[name](limit) for name, limit in given.items()]
    return optax.chain(*steps) if steps else optax.identity()


def _clip_by_norm(limit: ArrayLike) -> optax.GradientTransformation:
    def clip(g: jax.Array) -> jax.Array:
        return _numerics.clip_to_norm(g, _numerics.norm([g]), limit)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _clip_by_global_norm(limit: ArrayLike) -> optax.GradientTransformation:
    # optax.clip_by_global_norm has no derivative at zero.
    def clip(updates: optax.Updates, _: object) -> optax.Updates:
        norm = _numerics.norm(jax.tree.leaves(updates))
        return jax.tree.map(lambda g: _numerics.clip_to_norm(g, norm, limit), updates)

    return optax.stateless(clip)


_CLIPPERS = {
    "clipnorm": _clip_by_norm,
    "clipvalue": optax.clip,
    "global_clipnorm": _clip_by_global_norm,
}
