"""The parts of RMSprop as ``init``/``update`` pairs over trees, unchecked.

Each part is one jitted function of a leaf: load the average, one step of `_rmsprop`, store it.
JAX traces it once for each shape, however many leaves there are, and XLA inlines it. `checked`
makes of these parts, or of a chain of them, what users are given.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _numerics, _rmsprop, _storage, _validate
from rmsprop_jax._numerics import Scalar
from rmsprop_jax._states import (
    LowPrecisionTraceState,
    ScaleByRmsWithCountState,
    ScaleByStddevState,
)
from rmsprop_jax._trees import per_leaf


def rms(
    *,
    decay: Scalar,
    eps: Scalar,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """`scale_by_rms`, unchecked."""
    counts = bias_correction or _storage.is_low_precision(accumulator_dtype)

    def init(params: Any) -> Any:
        nu = _averages(params, initial_scale, accumulator_dtype, nonnegative=True)
        return ScaleByRmsWithCountState(_zero(), nu) if counts else optax.ScaleByRmsState(nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count: Any = optax.safe_increment(state.count) if counts else None
        correction = _numerics.bias_correction(decay, count) if bias_correction else 1.0
        updates, new = per_leaf(
            partial(_rms_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"nu": state.nu},
            scalars=(decay, 1 - decay, eps, correction),
            accumulator_dtype=accumulator_dtype,
            count=count,
        )
        return updates, state._replace(**new, **({"count": count} if counts else {}))

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("eps_in_sqrt", "bias_correction"))
def _rms_step(
    scalars: jax.Array,
    g: jax.Array,
    kept: Any,
    rounding: _storage.Rounding | None,
    *,
    eps_in_sqrt: bool,
    bias_correction: bool,
) -> tuple[jax.Array, Any]:
    v = _storage.load(kept)
    g = g.astype(jnp.result_type(g, v))
    chex.assert_equal_shape([g, v])
    decay, weight, eps, correction = scalars[:4].astype(v.dtype)
    u, v = _rmsprop.rms(
        g,
        v,
        decay=decay,
        weight=weight,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        correction=correction if bias_correction else 1,
    )
    return u, _storage.store(v, kept, rounding, shrink=decay)


def stddev(
    *,
    decay: Scalar,
    eps: Scalar,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """`scale_by_stddev`, unchecked."""
    counts = bias_correction or _storage.is_low_precision(accumulator_dtype)

    def init(params: Any) -> ScaleByStddevState:
        # The corrected averages hold gradients only; `update` adds the start to them.
        start = 0.0 if bias_correction else initial_scale
        mu = _averages(params, 0.0, accumulator_dtype)
        var = _averages(params, start, accumulator_dtype, nonnegative=True)
        return ScaleByStddevState(_zero() if counts else None, mu, var)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ScaleByStddevState]:
        del params
        count: Any = optax.safe_increment(state.count) if counts else None
        weight, start = 1 - decay, 0.0
        if bias_correction:
            weight = _numerics.newest_weight(decay, count)
            start = initial_scale * _numerics.corrected_start(decay, count)
        updates, new = per_leaf(
            partial(_stddev_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"mu": state.mu, "var": state.var},
            scalars=(weight, eps, start),
            accumulator_dtype=accumulator_dtype,
            count=count,
        )
        return updates, ScaleByStddevState(count, **new)

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("eps_in_sqrt", "bias_correction"))
def _stddev_step(
    scalars: jax.Array,
    g: jax.Array,
    kept_mean: Any,
    kept_variance: Any,
    rounding_mean: _storage.Rounding | None,
    rounding_variance: _storage.Rounding | None,
    *,
    eps_in_sqrt: bool,
    bias_correction: bool,
) -> tuple[jax.Array, Any, Any]:
    m, s = _storage.load(kept_mean), _storage.load(kept_variance)
    g = g.astype(jnp.result_type(g, m))
    chex.assert_equal_shape([g, m, s])
    weight, eps, start = scalars[:3].astype(s.dtype)
    u, m, s = _rmsprop.stddev(
        g,
        m,
        s,
        weight=weight,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        start=start if bias_correction else 0,
    )
    m = _storage.store(m, kept_mean, rounding_mean)
    return u, m, _storage.store(s, kept_variance, rounding_variance, shrink=1 - weight)


def trace(
    *, momentum: Scalar, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """``optax.trace``, unchecked, kept in at least float32 or rounded stochastically."""
    counts = _storage.is_low_precision(accumulator_dtype)

    def init(params: Any) -> Any:
        buffer = _averages(params, 0.0, accumulator_dtype)
        return LowPrecisionTraceState(_zero(), buffer) if counts else optax.TraceState(buffer)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count: Any = optax.safe_increment(state.step) if counts else None
        updates, new = per_leaf(
            partial(_trace_step, nesterov=nesterov),
            updates,
            {"trace": state.trace},
            scalars=(momentum,),
            accumulator_dtype=accumulator_dtype,
            count=count,
        )
        return updates, state._replace(**new, **({"step": count} if counts else {}))

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames="nesterov")
def _trace_step(
    scalars: jax.Array,
    x: jax.Array,
    kept: Any,
    rounding: _storage.Rounding | None,
    *,
    nesterov: bool,
) -> tuple[jax.Array, Any]:
    b = _storage.load(kept)
    x = x.astype(jnp.result_type(x, b))
    chex.assert_equal_shape([x, b])
    momentum = scalars[0].astype(jnp.finfo(b.dtype).dtype)
    step, b = _rmsprop.trace(x, b, momentum=momentum, nesterov=nesterov)
    return step, _storage.store(b, kept, rounding)


def decayed_weights(
    weight_decay: Scalar,
    learning_rate: Scalar | optax.Schedule | None = None,
    mask: Any = None,
) -> optax.GradientTransformation:
    """``optax.add_decayed_weights``, unchecked: ``g + weight_decay * w``.

    Given the learning rate, ``u - learning_rate * weight_decay * w``: decoupled, for the end of a
    chain.
    """
    factor: Any = weight_decay
    if callable(learning_rate):
        factor = lambda count: -weight_decay * learning_rate(count)  # noqa: E731
    elif learning_rate is not None:
        factor = -weight_decay * learning_rate
    decay = optax.add_decayed_weights(factor, None if mask is None else _validate.mask(mask))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _validate.params_given(params, weight_decay=weight_decay)
        return decay.update(updates, state, params)

    # `Layout` calls init with one leaf, which a mask does not fit. It does not change the state.
    everywhere = optax.add_decayed_weights(factor, None if mask is None else True)
    return optax.GradientTransformation(everywhere.init, update)


def _averages(
    params: Any,
    start: Scalar,
    accumulator_dtype: DTypeLike | None,
    *,
    nonnegative: bool = False,
) -> Any:
    """A tree of averages like the parameters."""
    keep = partial(_storage.init, nonnegative=nonnegative)
    return jax.tree.map(lambda p: keep(p, start, accumulator_dtype), params)


def _zero() -> jax.Array:
    return jnp.zeros([], jnp.int32)
