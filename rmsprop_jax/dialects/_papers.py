"""The RMSprop of Hinton's lecture and of two papers."""

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.dialects._parts import none_at_zero


def hinton(
    learning_rate: ArrayLike | optax.Schedule,
    decay: ArrayLike = 0.9,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The RMSprop of Hinton's slide.

    .. math::

        v_t = d\, v_{t-1} + (1 - d)\, g_t^2, \qquad
        w_{t+1} = w_t - \eta_t\, \frac{g_t}{\sqrt{v_t}}

    The only difference from ``rmsprop`` is that there is no epsilon: steps do not depend on the
    scale of the gradients at all. A parameter whose gradients have all been zero does not move
    (0/0 is 0).

    Args:
      learning_rate: :math:`\eta`, or a schedule. The slides give no value.
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
    r"""The RMSprop of Graves' handwriting synthesis: always centred, with momentum.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, g_t^2, \qquad m_t = d\, m_{t-1} + (1 - d)\, g_t \\
        b_t &= \mu\, b_{t-1} - \eta_t\, \frac{g_t}{\sqrt{v_t - m_t^2 + \epsilon}} \\
        w_{t+1} &= w_t + b_t

    The defaults are the paper's. Its eps is ten thousand times Optax's: steps are damped where
    gradients are smaller than 0.01. The paper also clips derivatives inside backpropagation, at
    the network's outputs and at the inputs of its LSTM layers. Clipping the gradients of the
    weights, as ``optax.clip`` does, is not the same.

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
        momentum=none_at_zero(momentum),
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
    momentum", both 0.95, are the decays of the two averages. With an eps of 0.01, gradients
    much smaller than 0.1 are scaled rather than normalized. That eps is for gradients summed over
    the batch of 32, as in DeepMind's code. With gradients averaged over the batch, the same
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
