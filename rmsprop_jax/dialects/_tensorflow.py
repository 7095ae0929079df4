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
    buffered,
    clip,
    decoupled,
    heavy_ball,
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

    Unlike torch's: eps stands inside the root, the learning rate inside the momentum
    buffer, and weight decay is decoupled, with the rate of the same step. Unlike
    TensorFlow 1's: v starts from zero. ``centered`` replaces :math:`v_t` by
    :math:`v_t - m_t^2`. This is Keras 3, and tf.keras of TensorFlow 2.11 (2022) on. Before that
    eps stood outside the root where there is no momentum: see `tf_keras`.

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

    The default optimizer of ``Model.compile`` for years. Where eps stands depends on the momentum:
    outside the root without, inside with it. At 1e-7 that is much: inside the root it acts as 3e-4
    would outside. ``centered`` replaces :math:`v_t` by :math:`v_t - m_t^2`. Of an
    embedding, TensorFlow moves only the rows that a batch uses. With momentum it leaves the
    averages of the others alone, too: see `rmsprop_jax.untouched_rows`. Without, their v decays,
    as here.

    Keras 1.0.4 to 2.3, a package of its own, is this without momentum and centring: there the
    rate is called ``lr``, and the third argument is ``epsilon``, so pass that by name. Its
    ``clipnorm`` is ``global_clipnorm`` here; until Keras 2.1.0 ``epsilon`` was 1e-8. Before 1.0.4
    it was 1e-6 inside the root, as in `rmsprop_jax.rmsprop`.

    Args:
      learning_rate: :math:`\eta`, or a schedule.
      rho: The decay of the averages, in [0, 1).
      momentum: :math:`\mu`, in [0, 1); at 0 there is no buffer.
      epsilon: :math:`\epsilon \ge 0`, in units of ``|g|`` without momentum, of ``|g|**2`` with it.
        0 means 1e-7, as there.
      centered: Whether to divide by the standard deviation.
      clipnorm: The largest L2 norm that the gradient of each variable may have.
      clipvalue: The largest magnitude of each element of a gradient; it comes before the norms.
      global_clipnorm: The largest L2 norm of all gradients together.
      decay: Of the learning rate, >= 0, per step.
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
      <https://www.tensorflow.org/api_docs/python/tf/keras/optimizers/legacy/RMSprop>`_; its text
      has eps inside the root always, its code has not.
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
    r"""``tf.compat.v1.train.RMSPropOptimizer``, that of EfficientNet, MobileNet and IMPALA.

    .. math::

        v_0 &= 1, \qquad v_t = d\, v_{t-1} + (1 - d)\, g_t^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t

    Unlike Keras's and torch's, v starts from one: where gradients are small, the first hundred
    steps or so are small too. Of an embedding, TensorFlow leaves the rows that a step does not
    touch, and their slots, as they are: see `rmsprop_jax.untouched_rows`. Otherwise as Keras's,
    with an epsilon of 1e-10; the papers that use it set their own, up to 1. ``centered`` replaces
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
        momentum=buffered(momentum),
        accumulator_dtype=accumulator_dtype,
    )


def _no_limit(name: str, limit: ArrayLike) -> bool:
    """Keras 3 does not clip at a limit of 0."""
    _validate.nonnegative(**{name: limit})
    return _validate.is_zero(limit)


def _or_default(epsilon: ArrayLike) -> ArrayLike:
    """``epsilon or 1e-7``, as the source has it."""
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
    """Averages with eps inside the root if there is momentum; for a traced one, whichever it says.

    Both have one state.
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
