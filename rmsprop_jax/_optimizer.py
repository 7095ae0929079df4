"""RMSprop, composed from its parts and Optax's."""

from typing import Any

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _transform, _validate
from rmsprop_jax._checked import checked


def rmsprop(
    learning_rate: ArrayLike | optax.Schedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    weight_decay: ArrayLike | None = None,
    mask: Any = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop: each gradient over the root of the moving average of its square.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, |g_t|^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t - \eta_t\, \lambda\, w_t

    ``eps_in_sqrt=False`` divides by :math:`\sqrt{v_t} + \epsilon` instead. ``centered`` replaces
    :math:`v_t` by the variance :math:`v_t - |m_t|^2`. ``nesterov`` replaces :math:`b_t` in the
    last line by :math:`\mu b_t + \eta_t g_t / \sqrt{v_t + \epsilon}`. See `scale_by_rms` and
    `scale_by_stddev` for the averages.

    Positional arguments, defaults and results are those of ``optax.rmsprop``, and so is the
    state, unless it is centred, low-precision or has weight decay: a checkpoint of
    ``optax.rmsprop`` goes on here, and back. What is different: averages and momentum are kept in
    at least float32 unless you ask for less, and all arithmetic up to the update is done there;
    the variance does not cancel; zero over zero is zero; derivatives of a step are finite where a
    gradient is zero; bad input raises.

    Every tree that Optax takes is taken. A gradient of None leaves its parameter and its state as
    they are. Leaves that no gradient can have (integers, booleans, PRNG keys, functions in a
    model) have no state. ``params`` are used for the dtype of the updates and for weight decay,
    and may be left out without it.

    ``accumulator_dtype`` keeps averages in fewer bytes, with stochastic rounding: rounded to
    nearest, a low-precision average stalls. The random bits are a hash of the step, the leaf's
    path and the element's index, so a run repeats bit for bit on any layout of devices; inside
    ``shard_map`` that takes `sharding.shard_map_specs`. `second_moment` reads the average. It is
    unbiased, and its root has a standard deviation:

    ================= ===================== ============================================
    accumulator_dtype bytes per parameter   deviation of sqrt(v), decay 0.9, 0.99, 0.999
    ================= ===================== ============================================
    ``bfloat16``      2 each                0.3 %, 0.8 %, 2 %
    ``float8_e5m2``   1 for v or the        4 %, 9 %, 11 %
                      variance, 2 for m, b
    ================= ===================== ============================================

    bfloat16 has the range of float32. In 8 bits each leaf has one scale: 3 mantissa bits for
    elements whose gradients are down to 1/2000 of the leaf's largest. Below, v stays right on
    average, but at 1/10 000 its root deviates by 80 %, and from 1/30 000 on v is mostly zero:
    updates are then up to ``learning_rate / sqrt(1 - decay)``, as at a first step. If sizes in one
    leaf differ that much, split it. An average that grows beyond 30 times the leaf's largest in one
    step is cut there, and the scale follows by at most 4 a step. One element's spikes leave the
    others alone; but after a bad batch of a whole leaf, with gradients 100 or 1000 times larger,
    its average is too small, and steps are up to 10 times float32's for about ``1 / (1 - decay)``
    steps: clip gradients in front. Gradients that are not finite spoil more than their element: put
    ``optax.apply_if_finite`` around. Updates come out one or two per cent larger in 8 bits, since
    the mean of ``1 / sqrt(v)`` lies above ``1 / sqrt`` of the mean. ``centered`` counts the
    rounding of the mean as variance: 5 % too much where the mean is 30 times the standard
    deviation, 20 % at 100 times. Derivatives of later steps take a low-precision average for a
    constant.

    Args:
      learning_rate: :math:`\eta`, or a schedule: a function from the steps taken to it. A negative
        one climbs. It stands inside the momentum buffer, as in Optax, Keras and TensorFlow; torch
        has it outside, which differs only while it changes.
      decay: d, in [0, 1). The average looks back over about ``1 / (1 - d)`` steps.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside.
      initial_scale: :math:`v_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps stands inside the root.
      centered: Whether to divide by the standard deviation, as Graves does.
      momentum: :math:`\mu`, in [0, 1); ``None`` keeps no buffer.
      nesterov: Whether the momentum is Nesterov's; needs ``momentum``.
      bias_correction: Whether to correct the averages for the start at zero.
      weight_decay: :math:`\lambda \ge 0`, decoupled as in AdamW: scaled by the learning rate, and
        part of neither the averages nor the momentum. ``None`` means none.
      mask: Which parameters decay, as in ``optax.adamw``: a tree of booleans like the parameters
        or a prefix of it, or a function that makes one of them; ``None`` means all.
      accumulator_dtype: The real dtype of averages and momentum, float32, float64,
        bfloat16 or float8_e5m2, as above; ``None`` means the parameter's, at least float32.
        Momentum and mean of complex parameters are never narrower than complex64.

    Returns:
      A transformation. Updates have the gradients' shapes, and the wider of the gradient's and
      the parameter's dtype (without ``params`` the gradient's), for ``optax.apply_updates``. The
      state is that of an ``optax.chain`` of `scale_by_rms` or `scale_by_stddev`, the learning
      rate, momentum, and weight decay if there is one; ``optax.tree_utils.tree_get(state, "nu")``
      finds v, and ``"var"`` the variance, if they are
      not in 8 bits; `second_moment` finds them in any case.

    Raises:
      TypeError: At once, if an argument is of the wrong kind; when traced, if a gradient is not
        floating point.
      ValueError: If a number is out of its range, if ``nesterov`` comes without ``momentum``, or
        if ``update`` comes without ``params`` where weights decay; when traced, if gradients and
        state do not have one structure and the same shapes.

    Example:
      The first step moves every parameter by ``learning_rate / sqrt(1 - decay)``,
      0.0316 here, against its gradient.

      >>> import jax.numpy as jnp
      >>> import optax
      >>> from rmsprop_jax import rmsprop
      >>> params = jnp.array([0.2, 0.4, 0.6])
      >>> gradients = jnp.array([-0.5, 0.3, 0.24])
      >>> optimizer = rmsprop(learning_rate=0.01)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(gradients, state, params)
      >>> print([f"{w:.4f}" for w in optax.apply_updates(params, updates)])
      ['0.2316', '0.3684', '0.5684']

    References:
      Hinton, Srivastava and Swersky, `Neural Networks for Machine Learning, lecture
      6e <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_,
      2012.

      Graves, `Generating Sequences With Recurrent Neural Networks
      <https://arxiv.org/abs/1308.0850>`_, 2013.

      Loshchilov and Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019.
    """
    options = _validate.averages(
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_in_sqrt,
        bias_correction=bias_correction,
        accumulator_dtype=accumulator_dtype,
    )
    rate = _validate.learning_rate(learning_rate=learning_rate)
    _validate.flag(centered=centered)
    _validate.momentum(momentum=momentum, nesterov=nesterov)
    weight_decay = _validate.weight_decay(weight_decay=weight_decay, mask=mask)

    parts = [
        _transform.stddev(**options) if centered else _transform.rms(**options),
        optax.scale_by_learning_rate(rate),
        optax.identity()
        if momentum is None
        else _transform.trace(
            momentum=momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype
        ),
    ]
    if weight_decay is not None:
        # Last, outside the momentum buffer: that is what decoupled means.
        parts.append(_transform.decayed_weights(weight_decay, rate, mask))
    return checked(optax.chain(*parts), uses_params=weight_decay is not None)
