"""TensorFlow's RMSprop, and Keras's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _validate
from rmsprop_jax._checked import checked
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.dialects._parts import (
    averages,
    clip,
    decoupled,
    heavy_ball,
    none_at_zero,
)


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

    Unlike torch, eps is inside the root, the learning rate is applied before momentum, and weight
    decay is decoupled, with the learning rate of the same step. Unlike TensorFlow 1, v starts at
    zero. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`. This is Keras 3, and tf.keras
    from TensorFlow 2.11 (2022) on. Before that, without momentum, eps was outside the root: see
    `tf_keras`.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      rho: The decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|**2``.
      centered: Whether to divide by the standard deviation.
      weight_decay: :math:`\lambda \ge 0`; ``None`` is 0.
      clipnorm: The largest L2 norm that the gradient of each variable may have.
        ``None`` or 0 does not clip, but an array of 0, as in
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
    limits = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    _validate.at_most_one(**limits)
    limits = {k: limit for k, limit in limits.items() if limit is None or not _no_limit(k, limit)}
    steps = optax.chain(
        clip(**limits),
        averages(rho, epsilon, centered, accumulator_dtype, eps_in_sqrt=True),
        optax.scale_by_learning_rate(rate),
        heavy_ball(momentum, accumulator_dtype),
        decoupled(weight_decay=decay, learning_rate=rate),
    )
    return checked(steps, uses_params=decay is not None)


def tf_keras(
    learning_rate: ArrayLike | optax.Schedule = 1e-3,
    rho: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-7,
    centered: bool = False,
    clipnorm: ArrayLike | None = None,
    clipvalue: ArrayLike | None = None,
    global_clipnorm: ArrayLike | None = None,
    *,
    decay: ArrayLike = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``tf.keras`` of TensorFlow 2.0 to 2.10, now ``tf.keras.optimizers.legacy``; Keras 1 and 2.

    .. math::

        v_t &= \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
        b_t &= \begin{cases}
            \eta_t\, g_t \, / \, (\sqrt{v_t} + \epsilon) & \text{if } \mu = 0 \\
            \mu\, b_{t-1} + \eta_t\, g_t \, / \, \sqrt{v_t + \epsilon} & \text{if } \mu > 0
        \end{cases} \\
        w_{t+1} &= w_t - b_t, \qquad \eta_t = \frac{\eta}{1 + \text{decay} \cdot t}

    For years this was the default optimizer of ``Model.compile``. Momentum decides where eps goes:
    outside the root without momentum, inside with it. The difference is large: 1e-7 inside the
    root acts like 3e-4 outside. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`. In an
    embedding, TensorFlow moves only the rows that a batch uses. With momentum it does not change
    the averages of the other rows either: see `rmsprop_jax.untouched_rows`. Without momentum
    their v decays, as here.

    Keras 1.0.4 to 2.3, a separate package, is this without momentum and centring. There the
    learning rate is called ``lr``, and the third argument is ``epsilon``, so pass that by name.
    Its ``clipnorm`` is ``global_clipnorm`` here. Until Keras 2.1.0 ``epsilon`` was 1e-8; before
    1.0.4 it was 1e-6 and inside the root, as in `rmsprop_jax.rmsprop`.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      rho: The decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|`` without momentum, of ``|g|**2`` with it.
        0 means 1e-7, as in TensorFlow.
      centered: Whether to divide by the standard deviation.
      clipnorm: The largest L2 norm that the gradient of each variable may have.
      clipvalue: The largest magnitude of each element of a gradient, applied before the norms.
      global_clipnorm: The largest L2 norm of all gradients together.
      decay: The decay of the learning rate per step, >= 0.
      accumulator_dtype: How averages and momentum are kept, as in `rmsprop_jax.rmsprop`.

    Returns:
      A transformation, as `rmsprop_jax.rmsprop`.

    Raises:
      ValueError: Also if both ``clipnorm`` and ``global_clipnorm`` are given.
      TypeError: As `rmsprop_jax.rmsprop`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> w = g = jnp.array(1e-4)
      >>> for make in (dialects.tf_keras, dialects.keras):
      ...     optimizer = make()
      ...     updates, state = optimizer.update(g, optimizer.init(w), w)
      ...     print(f"{updates:.4f}")  # 1e-3 g over sqrt(v) + 1e-7, or over sqrt(v + 1e-7)
      -0.0032
      -0.0003

    Source:
      `tf.keras.optimizers.legacy.RMSprop
      <https://www.tensorflow.org/api_docs/python/tf/keras/optimizers/legacy/RMSprop>`_. Its
      documentation always has eps inside the root, its code does not.
    """
    rate = _validate.learning_rate(learning_rate=learning_rate)
    _validate.fraction(rho=rho)
    _validate.nonnegative(epsilon=epsilon, decay=decay)
    _validate.at_most_one(clipnorm=clipnorm, global_clipnorm=global_clipnorm)
    steps = optax.chain(
        clip(clipvalue=clipvalue, clipnorm=clipnorm, global_clipnorm=global_clipnorm),
        _eps_by_momentum(
            momentum,
            lambda inside: averages(
                rho, _or_default(epsilon), centered, accumulator_dtype, eps_in_sqrt=inside
            ),
        ),
        optax.scale_by_learning_rate(_inverse_time_decay(rate, decay)),
        heavy_ball(momentum, accumulator_dtype),
    )
    return checked(steps)


def tensorflow_v1(
    learning_rate: ArrayLike | optax.Schedule,
    decay: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-10,
    centered: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""``tf.compat.v1.train.RMSPropOptimizer``, used for EfficientNet, MobileNet and IMPALA.

    .. math::

        v_0 &= 1, \qquad v_t = d\, v_{t-1} + (1 - d)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t

    Unlike in Keras and torch, v starts at one: where gradients are small, the first hundred steps
    or so are small too. In an embedding, TensorFlow does not change the rows that a step does not
    use, nor their averages: see `rmsprop_jax.untouched_rows`. Otherwise this is Keras's rule with
    an epsilon of 1e-10; papers that use it set their own, up to 1. ``centered`` replaces
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
        momentum=none_at_zero(momentum),
        accumulator_dtype=accumulator_dtype,
    )


def _no_limit(name: str, limit: ArrayLike) -> bool:
    """Keras 3 does not clip at a limit of 0."""
    _validate.nonnegative(**{name: limit})
    return _validate.is_zero(limit)


def _or_default(epsilon: ArrayLike) -> ArrayLike:
    """``epsilon or 1e-7``, as in TensorFlow's code."""
    return (
        jnp.where(epsilon == 0, 1e-7, epsilon)
        if isinstance(epsilon, jax.Array)
        else epsilon or 1e-7
    )


def _inverse_time_decay(rate: Any, decay: ArrayLike) -> Any:
    if _validate.is_zero(decay):
        return rate
    return lambda step: (rate(step) if callable(rate) else rate) / (1 + decay * step)


def _eps_by_momentum(
    momentum: Any, averages: Callable[[bool], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Averages with eps inside the root if there is momentum; if that is traced, computes both.

    Both have the same state.
    """
    _validate.fraction(momentum=momentum)
    if not isinstance(momentum, jax.Array):
        return averages(bool(momentum > 0))
    inside, outside = averages(True), averages(False)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with_momentum, new = inside.update(updates, state, params)
        without, _ = outside.update(updates, state, params)
        return jax.tree.map(partial(jnp.where, momentum > 0), with_momentum, without), new

    return optax.GradientTransformation(inside.init, update)
