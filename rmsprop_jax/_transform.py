"""The parts of RMSprop as ``init``/``update`` pairs over pytrees.

First the parts bare: the algorithm and nothing else, on floating-point arrays of at
least float32 and a state that fits them. `transformation` sees to that, and makes of
bare parts, or of a chain of them, what users are given.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _accumulator, _checks, _moments
from rmsprop_jax._moments import Scalar


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`.

    Attributes:
      count: Steps taken, an int32 scalar; ``None`` if neither bias correction nor a narrow
        ``accumulator_dtype`` needs it.
      nu: v, the decaying average of ``|g|**2``: real, shaped as the parameters. In one
        byte, each leaf is an object that ``numpy.asarray`` reads.
    """

    count: jax.Array | None  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: optax.Updates


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`.

    Attributes:
      count: Steps taken, an int32 scalar; ``None`` if neither bias correction nor a narrow
        ``accumulator_dtype`` needs it.
      mu: m, the decaying average of ``g``, shaped as the parameters.
      var: ``s = v - |m|**2``, the decaying variance of ``g``: real, shaped alike.
        It stands in the place of Optax's ``nu``. With bias correction both averages
        are kept corrected.
    """

    count: jax.Array | None  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    var: optax.Updates


class RoundedTraceState(NamedTuple):
    """State of a momentum buffer in few bits: ``optax.TraceState`` and the number of the step.

    Attributes:
      step: Steps taken, an int32 scalar. Not ``count``, which ``optax.tree_utils.tree_get``
        is to find once.
      trace: b, the momentum buffer, shaped as the parameters.
    """

    step: jax.Array
    trace: optax.Updates


def rms(
    decay: Scalar,
    eps: Scalar,
    initial_scale: Scalar,
    eps_in_sqrt: bool,
    bias_correction: bool,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    """`scale_by_rms`, bare."""
    counts = bias_correction or _accumulator.is_narrow(accumulator_dtype)

    def init(params: Any) -> Any:
        return ScaleByRmsState(
            count=jnp.zeros([], jnp.int32) if counts else None,
            nu=_accumulator.full_like(params, initial_scale, accumulator_dtype, nonnegative=True),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = _incremented(state.count)
        correction = _moments.bias_correction(decay, count) if bias_correction else 1.0

        def average(g: jax.Array, v: jax.Array) -> jax.Array:
            return _moments.decaying_average(_moments.squared_magnitude(g), v, decay)

        def scale(g: jax.Array, v: jax.Array) -> jax.Array:
            return _moments.normalize(g, v / correction, eps, eps_in_sqrt)

        nu = jax.tree.map(average, updates, _accumulator.load(state.nu))
        updates = jax.tree.map(scale, updates, nu)
        nu = _accumulator.store(nu, state.nu, count, "nu", shrunk=decay)
        return updates, ScaleByRmsState(count, nu)

    return optax.GradientTransformation(init, update)


def stddev(
    decay: Scalar,
    eps: Scalar,
    initial_scale: Scalar,
    eps_in_sqrt: bool,
    bias_correction: bool,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    """`scale_by_stddev`, bare."""
    counts = bias_correction or _accumulator.is_narrow(accumulator_dtype)

    def init(params: Any) -> Any:
        # The corrected averages hold gradients only; `update` adds the start to them.
        start = 0.0 if bias_correction else initial_scale
        return ScaleByStddevState(
            count=jnp.zeros([], jnp.int32) if counts else None,
            mu=_accumulator.full_like(params, 0.0, accumulator_dtype),
            var=_accumulator.full_like(params, start, accumulator_dtype, nonnegative=True),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count, weight, start = _incremented(state.count), 1 - decay, 0.0
        if bias_correction:
            weight = _moments.newest_weight(decay, count)
            # To add a zero would cost a scalar's read in every leaf.
            if not _checks.is_zero(initial_scale):
                start = initial_scale * _moments.corrected_start(decay, count)

        def average(g: jax.Array, m: jax.Array) -> jax.Array:
            return _moments.decaying_mean(g, m, weight)

        def spread(g: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
            return _moments.decaying_variance(g, m, s, weight)

        def scale(g: jax.Array, s: jax.Array) -> jax.Array:
            return _moments.normalize(g, s + start, eps, eps_in_sqrt)

        mu = jax.tree.map(average, updates, _accumulator.load(state.mu))
        var = jax.tree.map(spread, updates, mu, _accumulator.load(state.var))
        updates = jax.tree.map(scale, updates, var)
        mu = _accumulator.store(mu, state.mu, count, "mu")
        var = _accumulator.store(var, state.var, count, "var", shrunk=1 - weight)
        return updates, ScaleByStddevState(count, mu, var)

    return optax.GradientTransformation(init, update)


def trace(
    decay: Scalar, nesterov: bool, accumulator_dtype: DTypeLike | None
) -> optax.GradientTransformation:
    """``optax.trace``, bare, kept in at least float32: ``b' = decay b + g``.

    Updates are ``b'``, or ``decay b' + g`` with Nesterov.
    """
    rounded = _accumulator.is_narrow(accumulator_dtype)

    def init(params: Any) -> Any:
        buffer = _accumulator.full_like(params, 0.0, accumulator_dtype)
        if rounded:
            return RoundedTraceState(jnp.zeros([], jnp.int32), buffer)
        return optax.TraceState(buffer)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        step: Any = _incremented(state.step) if rounded else None

        def accumulate(g: jax.Array, b: jax.Array) -> jax.Array:
            return _moments.decaying_sum(g, b, decay)

        buffer = jax.tree.map(accumulate, updates, _accumulator.load(state.trace))
        updates = jax.tree.map(accumulate, updates, buffer) if nesterov else buffer
        buffer = _accumulator.store(buffer, state.trace, step, "trace")
        return updates, RoundedTraceState(step, buffer) if rounded else optax.TraceState(buffer)

    return optax.GradientTransformation(init, update)


def _incremented(count: Any) -> Any:
    return None if count is None else jnp.asarray(optax.safe_increment(count))


def decayed_weights(
    weight_decay: Scalar, learning_rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """``optax.add_decayed_weights``, bare: ``g + weight_decay * w``.

    Given the learning rate, ``g - learning_rate * weight_decay * w``: decoupled, for
    the end of a chain.
    """
    if _checks.is_zero(weight_decay):
        return optax.identity()
    if learning_rate is None:
        decay = optax.add_decayed_weights(weight_decay)
    elif callable(learning_rate):
        decay = optax.add_decayed_weights(lambda count: -weight_decay * learning_rate(count))
    else:
        decay = optax.add_decayed_weights(-weight_decay * learning_rate)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _checks.check_params_given("weight_decay", weight_decay, params)
        return decay.update(updates, state, jax.tree.map(_accumulator.widen, params))

    return optax.GradientTransformation(decay.init, update)


def transformation(bare: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Makes a public transformation of a bare one.

    What comes in is checked, handed on in at least float32, and each update is
    rounded once, to its gradient's dtype.
    """

    def checked_init(params: optax.Params) -> optax.OptState:
        _checks.check_leaves("params", params)
        return bare.init(params)

    def checked_update(
        updates: optax.Updates, state: optax.OptState, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args  # for other transformations in the chain
        _checks.check_leaves("updates", updates)
        if params is None:
            expected, like = jax.eval_shape(bare.init, updates), "init(updates)"
        else:
            _checks.check_shapes("updates", updates, params, like="params")
            expected, like = jax.eval_shape(bare.init, params), "init(params)"
        state = _accumulator.recognized(state)
        _checks.check_shapes_and_dtypes("state", state, expected, like=like)

        gradients = jax.tree.map(jnp.asarray, updates)
        updates, state = bare.update(jax.tree.map(_accumulator.widen, gradients), state, params)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, gradients), state

    return optax.GradientTransformationExtraArgs(checked_init, checked_update)


def scale_by_rms(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each gradient by the root of the decaying average of its square.

    .. math::

        v_t = d\, v_{t-1} + (1 - d)\, |g_t|^2, \qquad
        u_t = \frac{g_t}{\sqrt{v_t + \epsilon}}
        \quad\text{or}\quad \frac{g_t}{\sqrt{v_t} + \epsilon}

    where the denominator is zero, so is :math:`u_t`. Bias correction divides
    :math:`v_t` by :math:`1 - d^t` before the root. Without it,
    :math:`|u_t| \le 1 / \sqrt{1 - d}`.

    That holds where the square of a gradient is a float32, from 1e-19 to 1e19. Below,
    the square is zero. Above, it saturates: the update is finite, but may be large,
    and the average forgets it in time.

    Args:
      decay: d, in [0, 1). The average looks back over about ``1 / (1 - d)`` steps.
        0.9 is Hinton's and Optax's; torch has 0.99.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside. 1e-8 is Optax's.
      initial_scale: :math:`v_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps stands inside the root (Optax, Keras, TensorFlow) or
        outside (torch).
      bias_correction: Whether to correct for the start at zero, as Adam does.
      accumulator_dtype: The dtype of v: float32, float64, bfloat16 or float8_e5m2, the
        last two rounded without bias, see `rmsprop`; ``None`` means the parameter's, at
        least float32.

    Returns:
      A transformation whose state is a `ScaleByRmsState`. Updates have the shape and
      dtype of the gradients. A drop-in for ``optax.scale_by_rms``, to rounding.

    Raises:
      TypeError: At once, if an argument is of the wrong kind; later, if a leaf is not
        floating point.
      ValueError: If a number is out of its range or the dtype is not supported.
      AssertionError: From chex, when traced: if gradients, parameters and state do
        not have one structure and the same shapes.

    Example:
      At the first step v is a tenth of the square: the update is the sign times
      ``sqrt(10)``, whether the gradient is small or large.

      >>> import jax.numpy as jnp
      >>> import rmsprop_jax
      >>> tx = rmsprop_jax.scale_by_rms(decay=0.9, eps=0.0)
      >>> gradients = {"w": jnp.array([1e-3, -1e3, 0.0])}
      >>> updates, state = tx.update(gradients, tx.init(gradients))
      >>> print([f"{u:.3f}" for u in updates["w"]])
      ['3.162', '-3.162', '0.000']

    References:
      Hinton, Srivastava and Swersky, `Neural Networks for Machine Learning, lecture
      6e <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_,
      2012.
    """
    options = (decay, eps, initial_scale, eps_in_sqrt, bias_correction, accumulator_dtype)
    _checks.check_options(*options)
    return transformation(rms(*options))


def scale_by_stddev(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each gradient by its decaying standard deviation: centred RMSprop.

    .. math::

        m_t = d\, m_{t-1} + (1 - d)\, g_t, \qquad
        s_t = d\, s_{t-1} + \frac{1 - d}{d}\, |g_t - m_t|^2, \qquad
        u_t = \frac{g_t}{\sqrt{s_t + \epsilon}}
        \quad\text{or}\quad \frac{g_t}{\sqrt{s_t} + \epsilon}

    where the denominator is zero, so is :math:`u_t`. This is Graves' eq. 38 to 40:
    :math:`s_t = v_t - |m_t|^2` exactly, with v the decaying average of ``|g|**2``.
    Kept as itself, s is never negative and loses no digits where the mean is much
    larger than the spread; the difference ends in NaN there. At a decay under about
    0.01 the division by d costs digits in turn.

    Bias correction puts :math:`v_t / c - |m_t / c|^2`, with :math:`c = 1 - d^t`, in
    the place of :math:`s_t`. One gradient has no variance: the first update is g over
    eps alone, ten thousand times g at the default. Choose a larger eps with it.

    Args:
      decay: d, in [0, 1), for both averages. 0.9 is Optax's; Graves and Nature-DQN
        have 0.95, torch 0.99.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside. 1e-8 is Optax's; Graves has 1e-4, Nature-DQN 0.01.
      initial_scale: :math:`s_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps stands inside the root (Optax, Keras, TensorFlow,
        Graves) or outside (torch).
      bias_correction: Whether to correct both averages for the start at zero.
      accumulator_dtype: The real dtype of m and s: float32, float64, bfloat16, or
        float8_e5m2 for s and bfloat16 for m, see `rmsprop`; ``None`` means the parameter's,
        at least float32.

    Returns:
      A transformation whose state is a `ScaleByStddevState`. Updates have the shape
      and dtype of the gradients. A drop-in for ``optax.scale_by_stddev``, to rounding.

    Raises:
      TypeError, ValueError, AssertionError: As `scale_by_rms`.

    Example:
      Gradients of 1000 give or take one: the standard deviation is one, so the
      update comes out near 1000, in float32 too.

      >>> import jax.numpy as jnp
      >>> import rmsprop_jax
      >>> tx = rmsprop_jax.scale_by_stddev(decay=0.9)
      >>> state = tx.init(jnp.array(0.0))
      >>> for step in range(400):
      ...     gradient = jnp.array(1000.0 + (-1) ** step)
      ...     updates, state = tx.update(gradient, state)
      >>> print(round(float(updates), -1))
      1000.0

    References:
      Graves, `Generating Sequences With Recurrent Neural Networks
      <https://arxiv.org/abs/1308.0850>`_, 2013.
    """
    options = (decay, eps, initial_scale, eps_in_sqrt, bias_correction, accumulator_dtype)
    _checks.check_options(*options)
    return transformation(stddev(*options))
