"""PyTorch's RMSprop, and the variants of timm, Stable-Baselines3 and fastai."""

from typing import Any

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _transform, _validate
from rmsprop_jax._checked import checked
from rmsprop_jax._momentum_first import momentum_over_rms
from rmsprop_jax.dialects._parts import averages, decoupled, heavy_ball, l2


def pytorch(
    lr: ArrayLike | optax.Schedule = 1e-2,
    alpha: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    momentum: ArrayLike = 0.0,
    centered: bool = False,
    maximize: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``torch.optim.RMSprop``.

    .. math::

        g_t &\leftarrow g_t + \lambda\, w_t \\
        v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} \\
        w_{t+1} &= w_t - \eta_t\, b_t

    Unlike in Keras and TensorFlow, eps is outside the root; weight decay is an L2 penalty that
    goes through the averages; the learning rate is applied after momentum, so a new rate scales
    the whole buffer at once; alpha is 0.99, not 0.9; and a complex parameter is treated as two
    real ones. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`.

    Args:
      lr: :math:`\eta`, or a schedule.
      alpha: The decay of the averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, in units of ``|g|``.
      weight_decay: :math:`\lambda \ge 0`, in units of g over w.
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      centered: Whether to divide by the standard deviation.
      maximize: Whether to ascend the gradient. Weights decay all the same.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`. It expects gradients of complex parameters in
      torch's convention, the conjugates of ``jax.grad``'s.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.pytorch(lr=0.01)
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.4f}")  # lr / sqrt(1 - alpha)
      -0.1000

    Source:
      `torch.optim.RMSprop
      <https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html>`_.
    """
    rate = _validate.learning_rate(lr=lr)
    _validate.flag(maximize=maximize)
    _validate.fraction(alpha=alpha)
    _validate.nonnegative(weight_decay=weight_decay, eps=eps)
    decay = _validate.weight_decay(weight_decay=weight_decay)
    steps = optax.chain(
        optax.scale(-1.0) if maximize else optax.identity(),
        l2(weight_decay=decay),
        averages(alpha, eps, centered, accumulator_dtype, eps_in_sqrt=False),
        heavy_ball(momentum, accumulator_dtype),
        optax.scale_by_learning_rate(rate),
    )
    return checked(optax.contrib.split_real_and_imaginary(steps), uses_params=decay is not None)


def timm(
    lr: ArrayLike | optax.Schedule = 1e-2,
    alpha: ArrayLike = 0.9,
    eps: ArrayLike = 1e-10,
    weight_decay: ArrayLike = 0.0,
    momentum: ArrayLike = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    lr_in_momentum: bool = True,
    *,
    mask: Any = None,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``RMSpropTF`` of timm, which trains EfficientNet and MobileNet in torch.

    .. math::

        g_t &\leftarrow g_t + \lambda\, w_t \\
        v_0 &= 1, \qquad v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t

    TensorFlow 1's rule under torch's names: v starts at one, eps is inside the root, and the
    learning rate is applied before momentum. Unlike TensorFlow 1 it has weight decay, an L2
    penalty as in torch. ``decoupled_decay`` subtracts :math:`\eta_t \lambda w_t` from the weights
    instead (timm's ``rmsproptfw``). ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`.

    For timm's ``corrected_weight_decay``, use ``weight_decay=0`` here and append to the chain
    ``optax.add_decayed_weights(lambda t: -weight_decay * lr(t) ** 2 / largest_lr)``. Its
    ``caution`` is a wrapper of eight lines around this: see docs/which_rmsprop.md.

    Args:
      lr: :math:`\eta`, or a schedule.
      alpha: The decay of the averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2``. timm's recipes use 0.001.
      weight_decay: :math:`\lambda \ge 0`, in units of g over w.
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      centered: Whether to divide by the standard deviation.
      decoupled_decay: Whether weights decay by :math:`\eta_t \lambda w_t`, outside averages and
        momentum.
      lr_in_momentum: Whether the learning rate is applied before momentum. Applied after it, a
        new rate scales the whole buffer at once.
      mask: Which parameters decay, as in `rmsprop_jax.rmsprop`. timm excludes biases and norms.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      The recipe of EfficientNet, ``--opt rmsproptf --opt-eps .001 --weight-decay 1e-5``:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> def not_a_bias(params):
      ...     return jax.tree.map(lambda w: w.ndim > 1, params)
      >>> optimizer = dialects.timm(
      ...     0.048, eps=0.001, weight_decay=1e-5, momentum=0.9, mask=not_a_bias
      ... )
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> print(f"{updates['kernel'][0, 0]:.4f}")  # 0.048 / sqrt(0.9 + 0.1 + 0.001)
      -0.0480

    Source:
      `timm.optim.RMSpropTF
      <https://github.com/huggingface/pytorch-image-models/blob/main/timm/optim/rmsprop_tf.py>`_.
    """
    rate = _validate.learning_rate(lr=lr)
    _validate.flag(decoupled_decay=decoupled_decay, lr_in_momentum=lr_in_momentum)
    _validate.fraction(alpha=alpha)
    _validate.nonnegative(weight_decay=weight_decay, eps=eps)
    decay = _validate.weight_decay(weight_decay=weight_decay, mask=mask)
    mask = None if mask is None else _validate.mask(mask)
    momentum_and_rate = [
        optax.scale_by_learning_rate(rate),
        heavy_ball(momentum, accumulator_dtype),
    ]
    steps = optax.chain(
        l2(weight_decay=None if decoupled_decay else decay, mask=mask),
        averages(alpha, eps, centered, accumulator_dtype, eps_in_sqrt=True, initial_scale=1.0),
        *(momentum_and_rate if lr_in_momentum else momentum_and_rate[::-1]),
        decoupled(weight_decay=decay if decoupled_decay else None, learning_rate=rate, mask=mask),
    )
    return checked(steps, uses_params=decay is not None)


def stable_baselines3(
    lr: ArrayLike | optax.Schedule = 1e-2,
    alpha: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    momentum: ArrayLike = 0.0,
    centered: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stable-Baselines3's ``RMSpropTFLike``, which makes its A2C match OpenAI's Baselines.

    .. math::

        g_t &\leftarrow g_t + \lambda\, w_t \\
        v_0 &= 1, \qquad v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - \eta_t\, b_t

    torch's rule with two differences, both from TensorFlow 1: eps is inside the root, and v starts
    at one. (Its own docstring has eps outside; its code does not.) The learning rate is applied
    after momentum, as in torch. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`.

    A2C uses it only if ``policy_kwargs`` name it; by default its RMSprop is torch's,
    ``dialects.pytorch(7e-4, 0.99, 1e-5)``.

    Args:
      lr: :math:`\eta`, or a schedule. A2C uses 7e-4.
      alpha: The decay of the averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2``. A2C uses 1e-5.
      weight_decay: :math:`\lambda \ge 0`, in units of g over w.
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      centered: Whether to divide by the standard deviation.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.stable_baselines3(lr=7e-4, eps=1e-5)
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.2e}")  # 7e-4 * 0.5 / sqrt(0.99 + 0.01 * 0.5**2)
      -3.51e-04

    Source:
      `stable_baselines3.common.sb2_compat.rmsprop_tf_like
      <https://stable-baselines3.readthedocs.io/en/master/modules/a2c.html>`_.
    """
    return timm(
        lr,
        alpha,
        eps,
        weight_decay,
        momentum,
        centered,
        lr_in_momentum=False,
        accumulator_dtype=accumulator_dtype,
    )


def fastai(
    lr: ArrayLike | optax.Schedule,
    mom: ArrayLike = 0.0,
    sqr_mom: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    wd: ArrayLike = 0.0,
    decouple_wd: bool = True,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``RMSProp`` of fastai: momentum of the gradients themselves, then the division.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + g_t \\
        w_{t+1} &= (1 - \eta_t\, \lambda)\, w_t - \eta_t\, \frac{b_t}{\sqrt{v_t} + \epsilon}

    All others divide first. Here the newest v divides the whole buffer, so a large gradient also
    scales down the contribution of earlier ones. Without momentum this is torch's rule with
    decoupled weight decay. All parameters have the same learning rate; where fastai gets a
    ``slice``, use ``optax.partition``.

    Args:
      lr: :math:`\eta`, or a schedule.
      mom: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      sqr_mom: d, the decay of the average, in [0, 1).
      eps: :math:`\epsilon \ge 0`, in units of ``|g|``.
      wd: :math:`\lambda \ge 0`.
      decouple_wd: Whether weights decay outside average and momentum; otherwise
        :math:`\lambda w_t` is added to the gradient.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.fastai(0.01, mom=0.9)
      >>> w = jnp.array(1.0)
      >>> state = optimizer.init(w)
      >>> for g in (0.5, 2.0):
      ...     updates, state = optimizer.update(jnp.array(g), state, w)
      >>> print(f"{updates:.4f}")  # 0.01 * (0.9 * 0.5 + 2) / sqrt(0.01 * (0.99 * 0.5**2 + 2**2))
      -0.1189

    Source:
      `fastai.optimizer.RMSProp <https://docs.fast.ai/optimizer.html#rmsprop>`_.
    """
    rate = _validate.learning_rate(lr=lr)
    _validate.flag(decouple_wd=decouple_wd)
    _validate.fraction(sqr_mom=sqr_mom, mom=mom)
    _validate.nonnegative(wd=wd, eps=eps)
    _validate.accumulator_dtype(accumulator_dtype)
    decay = _validate.weight_decay(wd=wd)
    options: dict[str, Any] = {"decay": sqr_mom, "eps": eps, "accumulator_dtype": accumulator_dtype}
    without_momentum = _validate.is_zero(mom)
    steps = optax.chain(
        l2(wd=None if decouple_wd else decay),
        _transform.rms(**options, eps_in_sqrt=False)
        if without_momentum
        else momentum_over_rms(**options, momentum=mom),
        optax.scale_by_learning_rate(rate),
        decoupled(wd=decay if decouple_wd else None, learning_rate=rate),
    )
    return checked(steps, uses_params=decay is not None)
