"""The unchecked transformations: the algorithm alone, as ``init``/``update`` pairs over trees.

Each calls one jitted function per leaf: load the averages, take a step of `_rmsprop`, store them.
JAX traces the function once per shape, however many leaves there are, and XLA inlines it. `checked`
adds checks and casts to such a transformation, or to a chain of them, and makes it public.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _numerics, _rmsprop, _states, _storage, _validate
from rmsprop_jax._numerics import Scalar
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
    low_precision = _storage.is_low_precision(accumulator_dtype)
    quantized = _storage.is_scaled(accumulator_dtype)
    has_count = bias_correction or low_precision

    def init(params: Any) -> Any:
        nu = _storage.init(params, initial_scale, accumulator_dtype, nonnegative=True)
        if quantized:
            return _states.ScaleByRmsQuantizedState(_zero(), nu)
        if has_count:
            return _states.ScaleByRmsWithCountState(_zero(), nu)
        return optax.ScaleByRmsState(nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step = _next_step(state.count, low_precision) if has_count else None
        correction = 1.0
        if bias_correction:
            correction = _numerics.bias_correction(decay, _numerics.steps_taken(step))
        updates, new = per_leaf(
            partial(_rms_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"nu": state.nu_quantized if quantized else state.nu},
            scalars=(decay, 1 - decay, eps, correction),
            accumulator_dtype=accumulator_dtype,
            step=step,
            decay=decay,
        )
        if not has_count:
            return updates, optax.ScaleByRmsState(**new)
        state_type = (
            _states.ScaleByRmsQuantizedState if quantized else _states.ScaleByRmsWithCountState
        )
        return updates, state_type(step, *new.values())

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("eps_in_sqrt", "bias_correction"))
def _rms_step(
    shared: jax.Array,
    g: jax.Array,
    kept: jax.Array,
    slot: _storage.Slot | None,
    *,
    eps_in_sqrt: bool,
    bias_correction: bool,
) -> tuple[jax.Array, Any]:
    v = _storage.load(kept, slot, shared)
    g = g.astype(jnp.result_type(g, v))
    chex.assert_equal_shape([g, v])
    decay, weight, eps, correction = shared[:4].astype(v.dtype)
    u, v = _rmsprop.rms(
        g,
        v,
        decay=decay,
        weight=weight,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        correction=correction if bias_correction else 1,
    )
    return u, _storage.store(v, kept, slot, shared)


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
    low_precision = _storage.is_low_precision(accumulator_dtype)
    quantized = _storage.is_scaled(accumulator_dtype)
    state_type: Any = (
        _states.ScaleByStddevQuantizedState if quantized else _states.ScaleByStddevState
    )

    def init(params: Any) -> Any:
        # Corrected averages hold gradients only. `update` adds what remains of initial_scale.
        start = 0.0 if bias_correction else initial_scale
        mu = _storage.init(params, 0.0, accumulator_dtype)
        var = _storage.init(params, start, accumulator_dtype, nonnegative=True)
        return state_type(_zero() if bias_correction or low_precision else None, mu, var)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step = _next_step(state.count, low_precision)
        weight, start = 1 - decay, 0.0
        if bias_correction:
            taken = _numerics.steps_taken(step)
            weight = _numerics.newest_weight(decay, taken)
            start = initial_scale * _numerics.corrected_start(decay, taken)
        updates, new = per_leaf(
            partial(_stddev_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"mu": state.mu, "var": state.var_quantized if quantized else state.var},
            scalars=(weight, eps, start),
            accumulator_dtype=accumulator_dtype,
            step=step,
            decay=1 - weight,
        )
        return updates, state_type(step, *new.values())

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("eps_in_sqrt", "bias_correction"))
def _stddev_step(
    shared: jax.Array,
    g: jax.Array,
    kept_mean: jax.Array,
    kept_variance: jax.Array,
    mean_slot: _storage.Slot | None,
    variance_slot: _storage.Slot | None,
    *,
    eps_in_sqrt: bool,
    bias_correction: bool,
) -> tuple[jax.Array, Any, Any]:
    m = _storage.load(kept_mean, mean_slot, shared)
    s = _storage.load(kept_variance, variance_slot, shared)
    g = g.astype(jnp.result_type(g, m))
    chex.assert_equal_shape([g, m, s])
    weight, eps, start = shared[:3].astype(s.dtype)
    u, m, s = _rmsprop.stddev(
        g,
        m,
        s,
        weight=weight,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        start=start if bias_correction else 0,
    )
    m = _storage.store(m, kept_mean, mean_slot, shared)
    return u, m, _storage.store(s, kept_variance, variance_slot, shared)


def trace(
    *, momentum: Scalar, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """``optax.trace``, unchecked, in at least float32 or with stochastic rounding."""
    low_precision = _storage.is_low_precision(accumulator_dtype)

    def init(params: Any) -> Any:
        buffer = _storage.init(params, 0.0, accumulator_dtype)
        if low_precision:
            return _states.LowPrecisionTraceState(_zero(), buffer)
        return optax.TraceState(buffer)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step = _next_step(state.step, low_precision) if low_precision else None
        updates, new = per_leaf(
            partial(_trace_step, nesterov=nesterov),
            updates,
            {"trace": state.trace},
            scalars=(momentum,),
            accumulator_dtype=accumulator_dtype,
            step=step,
        )
        if low_precision:
            return updates, _states.LowPrecisionTraceState(step, **new)
        return updates, optax.TraceState(**new)

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames="nesterov")
def _trace_step(
    shared: jax.Array,
    x: jax.Array,
    kept: jax.Array,
    slot: _storage.Slot | None,
    *,
    nesterov: bool,
) -> tuple[jax.Array, Any]:
    b = _storage.load(kept, slot, shared)
    x = x.astype(jnp.result_type(x, b))
    chex.assert_equal_shape([x, b])
    momentum = shared[0].astype(jnp.finfo(b.dtype).dtype)
    u, b = _rmsprop.trace(x, b, momentum=momentum, nesterov=nesterov)
    return u, _storage.store(b, kept, slot, shared)


def decayed_weights(
    weight_decay: Scalar,
    learning_rate: Scalar | optax.Schedule | None = None,
    mask: Any = None,
    name: str = "weight_decay",
) -> optax.GradientTransformation:
    """``optax.add_decayed_weights``, unchecked: ``g + weight_decay * w``.

    With a learning rate, decoupled: ``u - learning_rate * weight_decay * w``, last in a chain.
    """
    factor: Any = weight_decay
    if callable(learning_rate):
        factor = lambda step: -weight_decay * learning_rate(step)  # noqa: E731
    elif learning_rate is not None:
        factor = -weight_decay * learning_rate
    decay = optax.add_decayed_weights(factor, None if mask is None else _validate.mask(mask))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _validate.params_given(params, **{name: weight_decay})
        return decay.update(updates, state, params)

    # `Layout` calls init with a single leaf, which no mask fits. The state is the same without it.
    unmasked = optax.add_decayed_weights(factor, None if mask is None else True)
    return optax.GradientTransformation(unmasked.init, update)


def _next_step(step: jax.Array | None, low_precision: bool) -> Any:
    """The step after the state's; None if the state has none."""
    advance = _numerics.next_step if low_precision else optax.safe_increment
    return None if step is None else advance(step)


def _zero() -> jax.Array:
    return jnp.zeros([], jnp.int32)
