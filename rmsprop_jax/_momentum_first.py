"""Momentum of the gradients, divided by the root of v afterwards: fastai's order, unchecked."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _numerics, _rmsprop, _storage, _transform
from rmsprop_jax._numerics import Scalar
from rmsprop_jax._trees import per_leaf


def momentum_over_rms(
    *, momentum: Scalar, decay: Scalar, eps: Scalar, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """``b' = momentum * b + g`` over ``sqrt(v') + eps``, with the states of `rms` and `trace`."""
    average = _transform.rms(decay=decay, eps=eps, accumulator_dtype=accumulator_dtype)
    buffer = _transform.trace(momentum=momentum, accumulator_dtype=accumulator_dtype)
    low_precision = _storage.is_low_precision(accumulator_dtype)
    nu = "nu_quantized" if _storage.is_scaled(accumulator_dtype) else "nu"

    def init(params: Any) -> Any:
        return average.init(params), buffer.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        average_state, buffer_state = state
        step = _numerics.next_step(average_state.count) if low_precision else None
        updates, new = per_leaf(
            _leaf_step,
            updates,
            {"nu": getattr(average_state, nu), "trace": buffer_state.trace},
            scalars=(decay, 1 - decay, eps, momentum),
            accumulator_dtype=accumulator_dtype,
            step=step,
            decay=decay,
        )
        average_state = average_state._replace(**{nu: new["nu"]})
        buffer_state = buffer_state._replace(trace=new["trace"])
        if low_precision:
            average_state, buffer_state = (
                average_state._replace(count=step),
                buffer_state._replace(step=step),
            )
        return updates, (average_state, buffer_state)

    return optax.GradientTransformation(init, update)


@jax.jit
def _leaf_step(
    shared: jax.Array,
    g: jax.Array,
    kept_average: jax.Array,
    kept_buffer: jax.Array,
    average_slot: _storage.Slot | None,
    buffer_slot: _storage.Slot | None,
) -> tuple[jax.Array, Any, Any]:
    v = _storage.load(kept_average, average_slot, shared)
    b = _storage.load(kept_buffer, buffer_slot, shared)
    g = g.astype(jnp.result_type(g, v))
    chex.assert_equal_shape([g, v, b])
    decay, weight, eps, momentum = shared[:4].astype(v.dtype)
    u, v, b = _rmsprop.momentum_over_rms(
        g, v, b, decay=decay, weight=weight, eps=eps, momentum=momentum
    )
    b = _storage.store(b, kept_buffer, buffer_slot, shared)
    return u, _storage.store(v, kept_average, average_slot, shared), b
