"""RMSprop, composed from this package's transformations and Optax's."""

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
    r"""RMSprop: divides each gradient by the root of the moving average of its square.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, |g_t|^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t - \eta_t\, \lambda\, w_t

    ``eps_in_sqrt=False`` divides by :math:`\sqrt{v_t} + \epsilon` instead. ``centered`` replaces
    :math:`v_t` by the variance :math:`v_t - |m_t|^2`. ``nesterov`` replaces :math:`b_t` in the
    last line by :math:`\mu b_t + \eta_t g_t / \sqrt{v_t + \epsilon}`. See `scale_by_rms` and
    `scale_by_stddev` for the averages.

    Positional arguments, defaults and results are those of ``optax.rmsprop``. So is the state,
    unless it is centred, low-precision or has weight decay: either optimizer can continue from a
    checkpoint of the other. The differences: averages and momentum are kept in at least float32
    unless you ask for less, and all arithmetic up to the update is done in it; the variance does
    not cancel; zero over zero is zero; derivatives of a step are finite where a gradient is zero;
    bad input raises.

    Any tree that Optax accepts is accepted. A gradient of None leaves its parameter and its state
    as they are. Leaves that cannot have a gradient (integers, booleans, PRNG keys, functions in a
    model) have no state. ``params`` are used for the dtype of the updates and for weight decay;
    without weight decay they may be left out.

    ``accumulator_dtype`` keeps averages in fewer bytes, with stochastic rounding: with rounding to
    nearest, a low-precision average stalls. The random bits are a hash of the step, the leaf's
    path and the element's index, so a run repeats bit for bit on any layout of devices (inside
    ``shard_map``, with `sharding.shard_map_specs`). `second_moment` reads the average. The average
    is unbiased; rounding gives its root a standard deviation:

    ================= ===================== ============================================
    accumulator_dtype bytes per parameter   deviation of sqrt(v), decay 0.9, 0.99, 0.999
    ================= ===================== ============================================
    ``bfloat16``      2 each                0.3 %, 0.8 %, 2 %
    ``float8_e5m2``   1 for v or the        4 %, 9 %, 11 %
                      variance, 2 for m, b
    ================= ===================== ============================================

    bfloat16 has the range of float32. 8-bit averages have one scale per leaf, with 3 mantissa bits
    for elements whose gradients are at least 1/2000 of the leaf's largest. Below that v is still
    unbiased, but at 1/10 000 its root deviates by 80 %, and from 1/30 000 on v is mostly zero:
    updates are then up to ``learning_rate / sqrt(1 - decay)``, as at a first step. If gradients in
    one leaf differ that much, split it. An average that grows in one step beyond 30 times the
    leaf's largest is clipped there, and the scale grows by a factor of at most 4 per step. A spike
    in one element does not harm the others. But after a bad batch, with gradients 100 or 1000 times
    larger in a whole leaf, its average is too small, and for about ``1 / (1 - decay)`` steps the
    updates are up to 10 times float32's: clip gradients first. A gradient that is not finite spoils
    more than its own element: wrap the optimizer in ``optax.apply_if_finite``. Updates are one or
    two per cent larger in 8 bits, since the mean of ``1 / sqrt(v)`` is larger than ``1 / sqrt`` of
    the mean. With ``centered``, rounding noise in the mean inflates the variance: by 5 % where the
    mean is 30 times the standard deviation, by 20 % at 100 times. Low-precision averages are
    constants when later steps are differentiated.

    Args:
      learning_rate: :math:`\eta`, or a schedule: a function of the number of steps taken. If it is
        negative, the optimizer maximizes. It is applied before momentum, as in Optax, Keras and
        TensorFlow; torch applies it after, which differs only while the rate changes.
      decay: d, in [0, 1). The average looks back over about ``1 / (1 - d)`` steps.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside.
      initial_scale: :math:`v_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps is inside the square root.
      centered: Whether to divide by the standard deviation, as Graves does.
      momentum: :math:`\mu`, in [0, 1); ``None`` keeps no buffer.
      nesterov: Whether to use Nesterov momentum; needs ``momentum``.
      bias_correction: Whether to correct the averages for starting at zero.
      weight_decay: :math:`\lambda \ge 0`, decoupled as in AdamW: scaled by the learning rate, and
        part of neither the averages nor the momentum. ``None`` means no decay.
      mask: Which parameters decay, as in ``optax.adamw``: a tree of booleans like the parameters,
        a prefix of it, or a function from the parameters to either; ``None`` means all.
      accumulator_dtype: The real dtype of averages and momentum, float32, float64,
        bfloat16 or float8_e5m2, as above; ``None`` means the parameter's, at least float32.
        Momentum and mean of complex parameters are kept in at least complex64.

    Returns:
      A transformation. Updates have the gradients' shapes, and the wider of the gradient's and
      the parameter's dtype (without ``params`` the gradient's), for ``optax.apply_updates``. The
      state is that of an ``optax.chain`` of `scale_by_rms` or `scale_by_stddev`, the learning
      rate, momentum and, if given, weight decay. ``optax.tree_utils.tree_get(state, "nu")`` finds
      v, and ``"var"`` the variance, unless they are in 8 bits; `second_moment` always finds them.

    Raises:
      TypeError: At once, if an argument is of the wrong kind; when traced, if a gradient is not
        floating point.
      ValueError: If a number is out of its range, if ``nesterov`` is set without ``momentum``, or
        if ``update`` is called without ``params`` although weights decay; when traced, if the
        structures or shapes of gradients and state differ.

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
        # Last, so that the decay does not enter the momentum buffer: decoupled.
        parts.append(_transform.decayed_weights(weight_decay, rate, mask))
    return checked(optax.chain(*parts), uses_params=weight_decay is not None)
