"""Scales gradients by their root mean square or by their standard deviation."""

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _transform, _validate
from rmsprop_jax._checked import checked


def scale_by_rms(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each gradient by the root of the moving average of its square.

    .. math::

        v_t = d\, v_{t-1} + (1 - d)\, |g_t|^2, \qquad
        u_t = \frac{g_t}{\sqrt{v_t + \epsilon}}
        \quad\text{or}\quad \frac{g_t}{\sqrt{v_t} + \epsilon}

    Where the denominator is zero, so is :math:`u_t`. Bias correction divides
    :math:`v_t` by :math:`1 - d^t` before the root. Without it,
    :math:`|u_t| \le 1 / \sqrt{1 - d}`.

    The bound holds where float32 can represent ``(1 - d) |g|**2``: for ``|g|`` from
    ``1.1e-19 / sqrt(1 - d)`` to 9e18. Below, v is zero, and only eps is left to divide by. Above,
    v saturates: the update is finite but may be large, and the average recovers in time.

    With a decay close to one, float32 itself is inexact: for constant gradients v is off by up to
    0.1 % at 0.9999, 1.5 % at 0.99999, 10 % at 0.999999. A decay passed as a float32 array, as
    ``optax.inject_hyperparams`` does, is less exact than a Python float: v is off by 0.014 %
    at 0.9999.

    Args:
      decay: d, in [0, 1). The average looks back over about ``1 / (1 - d)`` steps.
        0.9 is Hinton's and Optax's; torch uses 0.99.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside. 1e-8 is Optax's.
      initial_scale: :math:`v_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps is inside the square root (Optax, Keras, TensorFlow) or
        outside (torch).
      bias_correction: Whether to correct for starting at zero, as Adam does.
      accumulator_dtype: The dtype of v: float32, float64, bfloat16 or float8_e5m2, the
        last two with stochastic rounding, see `rmsprop`; ``None`` means the parameter's, at
        least float32.

    Returns:
      A transformation. Its state is Optax's: ``optax.ScaleByRmsState(nu)``, with a ``count``
      if bias correction or low precision needs one; in 8 bits, a `ScaleByRmsQuantizedState`.
      Updates have the gradients' shapes, and the wider of the gradient's and the parameter's
      dtype. A drop-in for ``optax.scale_by_rms``, up to rounding. See `rmsprop` for the trees that
      it accepts.

    Raises:
      TypeError: At once, if an argument is of the wrong kind; when traced, if a gradient is not
        floating point.
      ValueError: If a number is out of its range or the dtype is not supported; when traced, if
        the structures or shapes of gradients and state differ.

    Example:
      At the first step v is a tenth of the squared gradient, so the update is its sign times
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
    options = _validate.averages(
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_in_sqrt,
        bias_correction=bias_correction,
        accumulator_dtype=accumulator_dtype,
    )
    return checked(_transform.rms(**options))


def scale_by_stddev(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each gradient by its moving standard deviation: centred RMSprop.

    .. math::

        m_t = d\, m_{t-1} + (1 - d)\, g_t, \qquad
        s_t = d\, s_{t-1} + \frac{1 - d}{d}\, |g_t - m_t|^2, \qquad
        u_t = \frac{g_t}{\sqrt{s_t + \epsilon}}
        \quad\text{or}\quad \frac{g_t}{\sqrt{s_t} + \epsilon}

    Where the denominator is zero, so is :math:`u_t`. This is Graves' eq. 38 to 40:
    :math:`s_t = v_t - |m_t|^2` exactly, with v the moving average of ``|g|**2``. Optax keeps v
    and subtracts, which gives NaN where the mean is much larger than the standard deviation.
    Here the state holds s, which is never negative and loses no digits. Only at a decay below
    about 0.01 does the division by d lose some.

    A limit of float32: m stops changing once ``(1 - d) |g - m|`` is below half the spacing of
    floats near m. So the standard deviation has a floor: about 3e-7, 5e-6 and 5e-5 of the mean at
    decay 0.9, 0.99 and 0.999.

    If gradients do not change, s falls to zero and the update grows to ``g / sqrt(eps)``, ten
    thousand times the gradient at the default. So does the first step with bias correction, which
    replaces :math:`s_t` by :math:`v_t / c - |m_t / c|^2`, with :math:`c = 1 - d^t`: a single
    gradient has no variance. Choose a larger eps in both cases.

    At a decay of exactly zero, the derivative with respect to the decay is defined as zero.

    Args:
      decay: d, in [0, 1), for both averages. 0.9 is Optax's; Graves and Nature-DQN
        use 0.95, torch 0.99.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside. 1e-8 is Optax's; Graves uses 1e-4, Nature-DQN 0.01.
      initial_scale: :math:`s_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps is inside the square root (Optax, Keras, TensorFlow,
        Graves) or outside (torch).
      bias_correction: Whether to correct both averages for starting at zero.
      accumulator_dtype: The real dtype of m and s: float32, float64, bfloat16, or
        float8_e5m2 for s and bfloat16 for m, see `rmsprop`; ``None`` means the parameter's,
        at least float32.

    Returns:
      A transformation whose state is a `ScaleByStddevState`, or in 8 bits a
      `ScaleByStddevQuantizedState`. Updates have the gradients' shapes, and the wider of the
      gradient's and the parameter's dtype. A drop-in for ``optax.scale_by_stddev``, up to
      rounding.

    Raises:
      TypeError, ValueError: As `scale_by_rms`.

    Example:
      For gradients of 1000 plus or minus 1 the standard deviation is one, so the update
      is close to 1000, in float32 too.

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
    options = _validate.averages(
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_in_sqrt,
        bias_correction=bias_correction,
        accumulator_dtype=accumulator_dtype,
    )
    return checked(_transform.stddev(**options))
