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
    counts = bias_correction or low_precision

    def init(params: Any) -> Any:
        nu = _storage.init(params, initial_scale, accumulator_dtype, nonnegative=True)
        if quantized:
            return _states.ScaleByRmsQuantizedState(_zero(), nu)
        return (
            _states.ScaleByRmsWithCountState(_zero(), nu) if counts else optax.ScaleByRmsState(nu)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = _next(state.count, low_precision) if counts else None
        correction = 1.0
        if bias_correction:
            correction = _numerics.bias_correction(decay, _numerics.steps_taken(count))
        updates, new = per_leaf(
            partial(_rms_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"nu": state.nu_quantized if quantized else state.nu},
            scalars=(decay, 1 - decay, eps, correction),
            accumulator_dtype=accumulator_dtype,
            count=count,
            shrink=decay,
        )
        if not counts:
            return updates, optax.ScaleByRmsState(**new)
        kept_as = (
            _states.ScaleByRmsQuantizedState if quantized else _states.ScaleByRmsWithCountState
        )
        return updates, kept_as(count, *new.values())

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
    state_of: Any = _states.ScaleByStddevQuantizedState if quantized else _states.ScaleByStddevState

    def init(params: Any) -> Any:
        # The corrected averages hold gradients only; `update` adds the start to them.
        start = 0.0 if bias_correction else initial_scale
        mu = _storage.init(params, 0.0, accumulator_dtype)
        var = _storage.init(params, start, accumulator_dtype, nonnegative=True)
        return state_of(_zero() if bias_correction or low_precision else None, mu, var)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = _next(state.count, low_precision)
        weight, start = 1 - decay, 0.0
        if bias_correction:
            taken = _numerics.steps_taken(count)
            weight = _numerics.newest_weight(decay, taken)
            start = initial_scale * _numerics.corrected_start(decay, taken)
        updates, new = per_leaf(
            partial(_stddev_step, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
            updates,
            {"mu": state.mu, "var": state.var_quantized if quantized else state.var},
            scalars=(weight, eps, start),
            accumulator_dtype=accumulator_dtype,
            count=count,
            shrink=1 - weight,
        )
        return updates, state_of(count, *new.values())

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
    m, s = (
        _storage.load(kept_mean, mean_slot, shared),
        _storage.load(kept_variance, variance_slot, shared),
    )
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
    """``optax.trace``, unchecked, kept in at least float32 or rounded stochastically."""
    low_precision = _storage.is_low_precision(accumulator_dtype)

    def init(params: Any) -> Any:
        buffer = _storage.init(params, 0.0, accumulator_dtype)
        if low_precision:
            return _states.LowPrecisionTraceState(_zero(), buffer)
        return optax.TraceState(buffer)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = _next(state.step, low_precision) if low_precision else None
        updates, new = per_leaf(
            partial(_trace_step, nesterov=nesterov),
            updates,
            {"trace": state.trace},
            scalars=(momentum,),
            accumulator_dtype=accumulator_dtype,
            count=count,
        )
        if low_precision:
            return updates, _states.LowPrecisionTraceState(count, **new)
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
    step, b = _rmsprop.trace(x, b, momentum=momentum, nesterov=nesterov)
    return step, _storage.store(b, kept, slot, shared)


def decayed_weights(
    weight_decay: Scalar,
    learning_rate: Scalar | optax.Schedule | None = None,
    mask: Any = None,
    name: str = "weight_decay",
) -> optax.GradientTransformation:
    """``optax.add_decayed_weights``, unchecked: ``g + weight_decay * w``.

    Given the learning rate, ``u - learning_rate * weight_decay * w``, decoupled: for a chain's end.
    """
    factor: Any = weight_decay
    if callable(learning_rate):
        factor = lambda count: -weight_decay * learning_rate(count)  # noqa: E731
    elif learning_rate is not None:
        factor = -weight_decay * learning_rate
    decay = optax.add_decayed_weights(factor, None if mask is None else _validate.mask(mask))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _validate.params_given(params, **{name: weight_decay})
        return decay.update(updates, state, params)

    # `Layout` calls init with one leaf, which a mask does not fit. It does not change the state.
    everywhere = optax.add_decayed_weights(factor, None if mask is None else True)
    return optax.GradientTransformation(everywhere.init, update)


def _next(step: jax.Array | None, low_precision: bool) -> Any:
    """The number of this step, of a state that counts."""
    advance = _numerics.next_step if low_precision else optax.safe_increment
    return None if step is None else advance(step)


def _zero() -> jax.Array:
    return jnp.zeros([], jnp.int32)
