r"""Each framework's RMSprop, under that framework's own argument names and defaults.

RMSprop was a lecture slide, and every framework made its own of it. With
:math:`g` the gradient, :math:`w` the parameter, :math:`\eta` the learning rate,
:math:`v` the moving average of :math:`g^2` and :math:`m` that of :math:`g`:

============== ========== ============================================ ================ ==========
dialect        v at first  what divides g                              momentum buffer  weights
============== ========== ============================================ ================ ==========
hinton         0          :math:`\sqrt{v}`                             -                -
graves         0          :math:`\sqrt{v - m^2 + \epsilon}`            holds η g        -
dqn            0          :math:`\sqrt{v - m^2 + \epsilon}`            -                -
pytorch        0          :math:`\sqrt{v} + \epsilon`                  holds g, then η  g += λ w
keras          0          :math:`\sqrt{v + \epsilon}`                  holds η g        w -= η λ w
tensorflow_v1  1          :math:`\sqrt{v + \epsilon}`                  holds η g        -
============== ========== ============================================ ================ ==========

A centred one has :math:`v - m^2` instead of :math:`v`. Learning rates may be schedules,
functions of the steps taken. Every dialect keeps what is this package's own: a variance that
does not cancel, and averages in at least float32, or with stochastic rounding where
``accumulator_dtype`` is narrower. Arguments that do not change the numbers are left out
(TensorFlow's ``use_locking``, torch's ``capturable``), so pass what follows them by name.
"""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _numerics, _transform, _validate
from rmsprop_jax._checked import checked
from rmsprop_jax._optimizer import rmsprop


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

    Unlike the others: eps stands outside the root; weight decay is an L2 penalty and
    goes through the averages; the learning rate stands outside the momentum buffer, so
    that a new rate scales all of it at once; alpha is 0.99, not 0.9; and a complex
    parameter is two real ones. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`.

    Args:
      lr: :math:`\eta`, or a schedule.
      alpha: The decay of the averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, in units of ``|g|``.
      weight_decay: :math:`\lambda \ge 0`, in units of g over w.
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      centered: Whether to divide by the standard deviation.
      maximize: Whether to go up the gradient. Weights decay all the same.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`. Gradients of complex parameters are
      expected as torch gives them, the conjugates of ``jax.grad``'s.

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
        optax.identity() if decay is None else _transform.decayed_weights(decay),
        _averages(alpha, eps, centered, accumulator_dtype, eps_in_sqrt=False),
        _heavy_ball(momentum, accumulator_dtype),
        optax.scale_by_learning_rate(rate),
    )
    return checked(optax.contrib.split_real_and_imaginary(steps), uses_params=decay is not None)


def keras(
    learning_rate: ArrayLike | optax.Schedule = 1e-3,
    rho: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-7,
    centered: bool = False,
    weight_decay: ArrayLike | None = None,
    clipnorm: ArrayLike | None = None,
    clipvalue: ArrayLike | None = None,
    global_clipnorm: ArrayLike | None = None,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``keras.optimizers.RMSprop`` of Keras 3.

    .. math::

        g_t &\leftarrow \text{clip}(g_t) \\
        v_t &= \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - \eta_t\, \lambda\, w_t - b_t

    Unlike torch's: eps stands inside the root, the learning rate inside the momentum
    buffer, and weight decay is decoupled, with the rate of the same step. Unlike
    TensorFlow 1's: v starts from zero. ``centered`` replaces :math:`v_t` by
    :math:`v_t - m_t^2`. This is Keras 3 and tf.keras of TensorFlow 2.11 on; before that, eps
    stood outside the root wherever there was no momentum.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      rho: The decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      centered: Whether to divide by the standard deviation.
      weight_decay: :math:`\lambda \ge 0`; ``None`` is 0.
      clipnorm: The largest L2 norm that the gradient of each variable may have;
        ``None`` or 0 does not clip; an array of 0, as in
        ``optax.inject_hyperparams``, clips to zero.
      clipvalue: The largest magnitude of each element of a gradient, likewise.
      global_clipnorm: The largest L2 norm of all gradients together, likewise.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      ValueError: Also if more than one of ``clipnorm``, ``clipvalue`` and
        ``global_clipnorm`` is given.
      TypeError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.keras(learning_rate=0.01)
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.4f}")  # learning_rate / sqrt(1 - rho)
      -0.0316

    Source:
      `keras.optimizers.RMSprop <https://keras.io/api/optimizers/rmsprop/>`_.
    """
    rate = _validate.learning_rate(learning_rate=learning_rate)
    decay = _validate.weight_decay(weight_decay=weight_decay)
    _validate.fraction(rho=rho)
    _validate.nonnegative(epsilon=epsilon)
    steps = optax.chain(
        _clip(clipnorm=clipnorm, clipvalue=clipvalue, global_clipnorm=global_clipnorm),
        _averages(rho, epsilon, centered, accumulator_dtype, eps_in_sqrt=True),
        optax.scale_by_learning_rate(rate),
        _heavy_ball(momentum, accumulator_dtype),
        optax.identity() if decay is None else _transform.decayed_weights(decay, rate),
    )
    return checked(steps, uses_params=decay is not None)


def tensorflow_v1(
    learning_rate: ArrayLike | optax.Schedule,
    decay: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-10,
    centered: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``tf.compat.v1.train.RMSPropOptimizer``, that of EfficientNet, MobileNet and IMPALA.

    .. math::

        v_0 &= 1, \qquad v_t = d\, v_{t-1} + (1 - d)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t

    Unlike Keras's and torch's, v starts from one: where gradients are small, the first hundred
    steps or so are small too. Gradients are dense here; of an embedding, TensorFlow leaves the
    rows that a step does not touch, and their slots, as they are. Otherwise as Keras's, with an
    epsilon of 1e-10; the papers that use it set their own, up to 1. ``centered`` replaces
    :math:`v_t` by :math:`v_t - m_t^2`.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      decay: d, the decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      centered: Whether to divide by the standard deviation.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.tensorflow_v1(learning_rate=0.01)
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.4f}")  # 0.01 * 0.5 / sqrt(0.9 + 0.1 * 0.5**2)
      -0.0052

    Source:
      `tf.compat.v1.train.RMSPropOptimizer
      <https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/RMSPropOptimizer>`_.
    """
    _validate.nonnegative(epsilon=epsilon)
    return rmsprop(
        learning_rate,
        decay,
        epsilon,
        initial_scale=1.0,
        centered=centered,
        momentum=_buffered(momentum),
        accumulator_dtype=accumulator_dtype,
    )


def hinton(
    learning_rate: ArrayLike | optax.Schedule,
    decay: ArrayLike = 0.9,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop as the slide has it.

    .. math::

        v_t = d\, v_{t-1} + (1 - d)\, g_t^2, \qquad
        w_{t+1} = w_t - \eta_t\, \frac{g_t}{\sqrt{v_t}}

    There is no epsilon, the one difference to ``rmsprop``: steps do not depend on the size of
    the gradients at all. A parameter whose gradients have all been zero stays (0/0 is 0).

    Args:
      learning_rate: :math:`\eta`, or a schedule. The slides name none.
      decay: d, in [0, 1); 0.9 is the slide's.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.hinton(learning_rate=0.01)
      >>> gradients = jnp.array([1e-6, 1e6, 0.0])
      >>> updates, state = optimizer.update(gradients, optimizer.init(gradients))
      >>> print([f"{u:.4f}" for u in updates])
      ['-0.0316', '-0.0316', '-0.0000']

    Source:
      Hinton, Srivastava and Swersky, `Neural Networks for Machine Learning, lecture
      6e <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_,
      2012.
    """
    return rmsprop(learning_rate, decay, eps=0.0, accumulator_dtype=accumulator_dtype)


def graves(
    learning_rate: ArrayLike | optax.Schedule = 1e-4,
    decay: ArrayLike = 0.95,
    momentum: ArrayLike = 0.9,
    eps: ArrayLike = 1e-4,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RMSprop of Graves' handwriting: always centred, with momentum.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2, \qquad m_t = d\, m_{t-1} + (1 - d)\, g_t \\
        b_t &= \mu\, b_{t-1} - \eta_t\, \frac{g_t}{\sqrt{v_t - m_t^2 + \epsilon}} \\
        w_{t+1} &= w_t + b_t

    The defaults are the paper's. Its eps is ten thousand times Optax's, and damps where
    gradients are smaller than 0.01. The paper also clips derivatives inside backpropagation, at
    the network's outputs and at the inputs of its LSTM layers; clipping the gradients of the
    weights, as ``optax.clip`` does, is something else.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      decay: d, the decay of both averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.graves()
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.2e}")  # 1e-4 * 0.5 / sqrt(0.05 * 0.95 * 0.5**2 + 1e-4)
      -4.57e-04

    Source:
      Graves, `Generating Sequences With Recurrent Neural Networks
      <https://arxiv.org/abs/1308.0850>`_, 2013, eq. 38 to 41 and section 4.2.
    """
    return rmsprop(
        learning_rate,
        decay,
        eps,
        centered=True,
        momentum=_buffered(momentum),
        accumulator_dtype=accumulator_dtype,
    )


def dqn(
    learning_rate: ArrayLike | optax.Schedule = 2.5e-4,
    decay: ArrayLike = 0.95,
    eps: ArrayLike = 0.01,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RMSprop of the DQN that plays Atari: always centred, without momentum.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2, \qquad m_t = d\, m_{t-1} + (1 - d)\, g_t \\
        w_{t+1} &= w_t - \eta_t\, \frac{g_t}{\sqrt{v_t - m_t^2 + \epsilon}}

    The defaults are the paper's. What it calls "gradient momentum" and "squared gradient
    momentum", 0.95 both, are the decays of the two averages. With an eps of 0.01, gradients
    much smaller than 0.1 are scaled rather than normalized. That eps belongs to gradients summed
    over the batch of 32, as DeepMind's code had them. With the mean of the batch, the same
    algorithm has ``eps=0.01 / 32**2``, about 1e-5.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      decay: d, the decay of both averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, "min squared gradient", in units of ``|g|**2``.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> optimizer = dialects.dqn()
      >>> w = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(0.5), optimizer.init(w), w)
      >>> print(f"{updates:.2e}")  # 2.5e-4 * 0.5 / sqrt(0.05 * 0.95 * 0.5**2 + 0.01)
      -8.45e-04

    Source:
      Mnih et al., `Human-level control through deep reinforcement learning
      <https://doi.org/10.1038/nature14236>`_, Nature 518, 2015, extended data table 1.
    """
    return rmsprop(learning_rate, decay, eps, centered=True, accumulator_dtype=accumulator_dtype)


def _averages(
    decay: ArrayLike,
    eps: ArrayLike,
    centered: bool,
    accumulator_dtype: DTypeLike | None,
    *,
    eps_in_sqrt: bool,
) -> optax.GradientTransformation:
    _validate.flag(centered=centered)
    _validate.accumulator_dtype(accumulator_dtype)
    scale_by: Any = _transform.stddev if centered else _transform.rms
    return scale_by(
        decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt, accumulator_dtype=accumulator_dtype
    )


def _heavy_ball(
    momentum: ArrayLike, accumulator_dtype: DTypeLike | None
) -> optax.GradientTransformation:
    buffered = _buffered(momentum)
    if buffered is None:
        return optax.identity()
    return _transform.trace(momentum=buffered, accumulator_dtype=accumulator_dtype)


def _buffered(momentum: ArrayLike) -> ArrayLike | None:
    """None where the frameworks keep no buffer."""
    _validate.fraction(momentum=momentum)
    return None if _validate.is_zero(momentum) else momentum


def _clip(**limits: ArrayLike | None) -> optax.GradientTransformation:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(limits)} may be given, got {given}")
    for name, limit in given.items():
        _validate.nonnegative(**{name: limit})
        if not _validate.is_zero(limit):
            return _CLIPPERS[name](limit)
    return optax.identity()


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

# All of them, by name; what holds for every dialect is asked of these.
DIALECTS = {make.__name__: make for make in (pytorch, keras, tensorflow_v1, hinton, graves, dqn)}
