r"""Each framework's RMSprop, under that framework's own argument names and defaults.

RMSprop was a lecture slide, and every framework made its own of it. With
:math:`g` the gradient, :math:`w` the parameter, :math:`\eta` the learning rate,
:math:`v` the decaying average of :math:`g^2` and :math:`m` that of :math:`g`:

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

A centred one has :math:`v - m^2` in the place of :math:`v`. Learning rates may be
schedules, functions of the number of steps taken. Every dialect keeps what is this
package's own: a variance that does not cancel, and averages in at least float32, or rounded
without bias where ``accumulator_dtype`` is narrower.
Arguments that do not change the numbers are left out (TensorFlow's ``use_locking``,
torch's ``capturable``): name those behind them.
"""

import jax
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _checks, _moments
from rmsprop_jax._moments import Scalar
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax._transform import decayed_weights, rms, stddev, trace, transformation


def pytorch(
    lr: optax.ScalarOrSchedule = 1e-2,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.0,
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
    parameter is two real ones. ``centered`` puts :math:`v_t - m_t^2` in the place of
    :math:`v_t`.

    Args:
      lr: :math:`\eta \ge 0`, or a schedule.
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
      TypeError, ValueError, AssertionError: As `rmsprop_jax.rmsprop`.

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
    lr = _checks.checked_learning_rate("lr", lr)
    _checks.check_number("weight_decay", weight_decay)
    _checks.check_flag("maximize", maximize)
    steps = optax.chain(
        optax.scale(-1.0) if maximize else optax.identity(),
        decayed_weights(weight_decay),
        _normalized("alpha", alpha, "eps", eps, centered, False, accumulator_dtype),
        _heavy_ball(momentum, accumulator_dtype),
        optax.scale_by_learning_rate(lr),
    )
    return transformation(optax.contrib.split_real_and_imaginary(steps))


def keras(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    rho: Scalar = 0.9,
    momentum: Scalar = 0.0,
    epsilon: Scalar = 1e-7,
    centered: bool = False,
    weight_decay: Scalar | None = None,
    clipnorm: Scalar | None = None,
    clipvalue: Scalar | None = None,
    global_clipnorm: Scalar | None = None,
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
    TensorFlow 1's: v starts from zero. ``centered`` puts :math:`v_t - m_t^2` in the
    place of :math:`v_t`.

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule.
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
      TypeError, AssertionError: As `rmsprop_jax.rmsprop`.

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
    learning_rate = _checks.checked_learning_rate("learning_rate", learning_rate)
    weight_decay = 0.0 if weight_decay is None else weight_decay
    _checks.check_number("weight_decay", weight_decay)
    return transformation(
        optax.chain(
            _clip(clipnorm=clipnorm, clipvalue=clipvalue, global_clipnorm=global_clipnorm),
            _normalized("rho", rho, "epsilon", epsilon, centered, True, accumulator_dtype),
            optax.scale_by_learning_rate(learning_rate),
            _heavy_ball(momentum, accumulator_dtype),
            decayed_weights(weight_decay, learning_rate),
        )
    )


def tensorflow_v1(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.9,
    momentum: Scalar = 0.0,
    epsilon: Scalar = 1e-10,
    centered: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``tf.compat.v1.train.RMSPropOptimizer``, that of EfficientNet, MobileNet and IMPALA.

    .. math::

        v_0 &= 1, \qquad v_t = d\, v_{t-1} + (1 - d)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t

    Unlike all others: v starts from one, so that where gradients are small, the first
    hundred steps or so are small too. Gradients are dense here: of an embedding
    TensorFlow leaves the rows that a step does not touch, and their slots, as they are.
    Otherwise as Keras's, with an epsilon of 1e-10; the papers that use it set their own,
    up to 1. ``centered`` puts :math:`v_t - m_t^2` in the place of :math:`v_t`.

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule.
      decay: d, the decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      centered: Whether to divide by the standard deviation.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError, AssertionError: As `rmsprop_jax.rmsprop`.

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
    _checks.check_number("epsilon", epsilon)
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
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.9,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop as the slide has it.

    .. math::

        v_t = d\, v_{t-1} + (1 - d)\, g_t^2, \qquad
        w_{t+1} = w_t - \eta_t\, \frac{g_t}{\sqrt{v_t}}

    There is no epsilon, the one difference to ``rmsprop``: the size of a gradient
    has no say at all. A parameter whose gradients have all been zero stays (0/0 is 0).

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule. The slides name none.
      decay: d, in [0, 1); 0.9 is the slide's.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError, AssertionError: As `rmsprop_jax.rmsprop`.

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
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    decay: Scalar = 0.95,
    momentum: Scalar = 0.9,
    eps: Scalar = 1e-4,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RMSprop of Graves' handwriting: always centred, with momentum.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2, \qquad m_t = d\, m_{t-1} + (1 - d)\, g_t \\
        b_t &= \mu\, b_{t-1} - \eta_t\, \frac{g_t}{\sqrt{v_t - m_t^2 + \epsilon}} \\
        w_{t+1} &= w_t + b_t

    The defaults are the paper's. Its eps is ten thousand times Optax's, and damps where
    gradients are smaller than 0.01; the paper clips them too (with ``optax.clip``, in
    front).

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule.
      decay: d, the decay of both averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError, AssertionError: As `rmsprop_jax.rmsprop`.

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
    learning_rate: optax.ScalarOrSchedule = 2.5e-4,
    decay: Scalar = 0.95,
    eps: Scalar = 0.01,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RMSprop of the DQN that plays Atari: always centred, without momentum.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2, \qquad m_t = d\, m_{t-1} + (1 - d)\, g_t \\
        w_{t+1} &= w_t - \eta_t\, \frac{g_t}{\sqrt{v_t - m_t^2 + \epsilon}}

    The defaults are the paper's. What it calls "gradient momentum" and "squared gradient
    momentum", 0.95 both, are the decays of the two averages. With an eps of 0.01, gradients
    much smaller than 0.1 are scaled rather than normalized.

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule.
      decay: d, the decay of both averages, in [0, 1).
      eps: :math:`\epsilon \ge 0`, "min squared gradient", in units of ``|g|**2``.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      TypeError, ValueError, AssertionError: As `rmsprop_jax.rmsprop`.

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


def _normalized(
    decay_name: str,
    decay: Scalar,
    eps_name: str,
    eps: Scalar,
    centered: bool,
    eps_in_sqrt: bool,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.check_number(decay_name, decay, below=1)
    _checks.check_number(eps_name, eps)
    _checks.check_flag("centered", centered)
    _checks.check_accumulator_dtype(accumulator_dtype)
    scale_by = stddev if centered else rms
    return scale_by(decay, eps, 0.0, eps_in_sqrt, False, accumulator_dtype)


def _heavy_ball(
    momentum: Scalar, accumulator_dtype: DTypeLike | None
) -> optax.GradientTransformation:
    momentum_or_none = _buffered(momentum)
    if momentum_or_none is None:
        return optax.identity()
    return trace(momentum_or_none, False, accumulator_dtype)


def _buffered(momentum: Scalar) -> Scalar | None:
    """None where the frameworks keep no buffer."""
    _checks.check_number("momentum", momentum, below=1)
    return None if _checks.is_zero(momentum) else momentum


def _clip(**limits: Scalar | None) -> optax.GradientTransformation:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(given) > 1:
        raise ValueError(f"only one of {', '.join(limits)} may be given, got {given}")
    for name, limit in given.items():
        _checks.check_number(name, limit, hint=", or None")
        if not _checks.is_zero(limit):
            return _CLIPPERS[name](limit)
    return optax.identity()


def _clip_by_norm(limit: Scalar) -> optax.GradientTransformation:
    def clip(g: jax.Array) -> jax.Array:
        return _moments.shrink(g, _moments.norm([g]), limit)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _clip_by_global_norm(limit: Scalar) -> optax.GradientTransformation:
    # optax.clip_by_global_norm has no derivative at zero.
    def clip(updates: optax.Updates, _: object) -> optax.Updates:
        norm = _moments.norm(jax.tree.leaves(updates))
        return jax.tree.map(lambda g: _moments.shrink(g, norm, limit), updates)

    return optax.stateless(clip)


_CLIPPERS = {
    "clipnorm": _clip_by_norm,
    "clipvalue": optax.clip,
    "global_clipnorm": _clip_by_global_norm,
}
