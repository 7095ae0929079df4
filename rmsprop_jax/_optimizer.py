"""RMSprop, composed from its parts and Optax's."""

import optax
from jax.typing import DTypeLike

from rmsprop_jax import _checks
from rmsprop_jax._moments import Scalar
from rmsprop_jax._transform import decayed_weights, rms, stddev, trace, transformation


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    weight_decay: Scalar = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop: each gradient over the root of the decaying average of its square.

    .. math::

        v_t &= d\, v_{t-1} + (1 - d)\, |g_t|^2 \\
        b_t &= \mu\, b_{t-1} + \eta_t\, \frac{g_t}{\sqrt{v_t + \epsilon}} \\
        w_{t+1} &= w_t - b_t - \eta_t\, \lambda\, w_t

    ``eps_in_sqrt=False`` divides by :math:`\sqrt{v_t} + \epsilon`; ``centered`` puts
    the variance :math:`v_t - |m_t|^2` in the place of :math:`v_t`; ``nesterov`` puts
    :math:`\mu b_t + \eta_t g_t / \sqrt{v_t + \epsilon}` in the place of :math:`b_t`
    in the last line. See `scale_by_rms` and `scale_by_stddev` for the
    averages.

    Positional arguments, defaults and results are those of ``optax.rmsprop``. What is
    different: averages and momentum are kept in at least float32 unless you ask for less, and all
    arithmetic up to the update is done there; the variance does not cancel; zero over zero is
    zero; derivatives of a step are finite where a gradient is zero; bad input is
    refused.

    ``accumulator_dtype`` keeps averages in fewer bytes. What is stored is rounded up or down at
    random, so that its mean is right: rounded to nearest, an average in few bits stands still.
    The randomness is a hash of the number of the step, the leaf's path and the element's index,
    so a run can be repeated to the bit, on any layout of devices; inside ``shard_map`` that takes
    `sharding.local_shards`. The average is unbiased, and its root has a spread:

    ================= ===================== ============================================
    accumulator_dtype bytes a parameter     spread of sqrt(v), at decay 0.9, 0.99, 0.999
    ================= ===================== ============================================
    ``bfloat16``      2 each                0.3 %, 0.8 %, 2 %
    ``float8_e5m2``   1 for v or the        4 %, 9 %, 11 %
                      variance, 2 for m, b
    ================= ===================== ============================================

    bfloat16 has the range of float32. One byte shares a scale over each leaf: 3 binary digits
    for elements whose gradients are down to 1/4000 of the leaf's largest. Below, v stays right
    on average, but at 1/10 000 its root has a spread of 20 %, at 1/100 000 of 100 %, and from
    1/1 000 000 on v is mostly zero: updates are then up to ``learning_rate / sqrt(1 - decay)``,
    as at a first step. If sizes in one leaf differ that much, split it. What grows beyond 7
    times the leaf's largest in one step is cut there and right one step later; an average that
    has just left zero is kept to a power of two. Gradients that are not finite spoil more than
    their element: put ``optax.apply_if_finite`` around. Updates come out one or two per cent
    larger in one byte, for the mean of ``1 / sqrt(v)`` lies above that of v. ``centered`` takes
    the rounding of the mean for variance: that is 5 % too large where the mean is 30 times the
    spread, 20 % at 100 times. Derivatives of later steps take a narrow average for a constant.

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule: a function from the number of
        steps taken to it. It stands inside the momentum buffer, as in Optax, Keras
        and TensorFlow; torch has it outside, which differs only while it changes.
      decay: d, in [0, 1). The average looks back over about ``1 / (1 - d)`` steps.
      eps: :math:`\epsilon \ge 0`, in units of ``|g|**2`` inside the root and of
        ``|g|`` outside.
      initial_scale: :math:`v_0 \ge 0`: 0 in most frameworks, 1 in TensorFlow 1.
      eps_in_sqrt: Whether eps stands inside the root.
      centered: Whether to divide by the standard deviation, as Graves does.
      momentum: :math:`\mu`, in [0, 1); ``None`` keeps no buffer.
      nesterov: Whether the momentum is Nesterov's; needs ``momentum``.
      bias_correction: Whether to correct the averages for the start at zero.
      weight_decay: :math:`\lambda \ge 0`, decoupled as in AdamW: scaled by the
        learning rate, and part of neither the averages nor the momentum. For a mask,
        leave it zero and put ``optax.add_decayed_weights`` into a chain.
      accumulator_dtype: The real dtype of averages and momentum, float32, float64,
        bfloat16 or float8_e5m2, as above; ``None`` means the parameter's, at least float32.
        Momentum and mean of complex parameters are never narrower than complex64.

    Returns:
      A transformation. Updates have the shape and dtype of the gradients, for
      ``optax.apply_updates``. The state is that of an ``optax.chain`` of
      `scale_by_rms` or `scale_by_stddev`, the learning rate, momentum
      and weight decay; ``optax.tree_utils.tree_get(state, "nu")`` finds v, and
      ``"var"`` the variance.

    Raises:
      TypeError: At once, if an argument is of the wrong kind; later, if a leaf is not
        floating point.
      ValueError: If a number is out of its range, if ``nesterov`` comes without
        ``momentum``, or if ``update`` comes without ``params`` where weights decay.
      AssertionError: From chex, when traced: if gradients, parameters and state do
        not have one structure and the same shapes.

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
    averages = (decay, eps, initial_scale, eps_in_sqrt, bias_correction, accumulator_dtype)
    learning_rate = _checks.checked_learning_rate("learning_rate", learning_rate)
    _checks.check_options(*averages)
    _checks.check_flag("centered", centered)
    _checks.check_momentum(momentum, nesterov)
    _checks.check_number("weight_decay", weight_decay)

    return transformation(
        optax.chain(
            stddev(*averages) if centered else rms(*averages),
            optax.scale_by_learning_rate(learning_rate),
            trace(momentum, nesterov, accumulator_dtype)
            if momentum is not None
            else optax.identity(),
            # Last, outside the momentum buffer: that is what decoupled means.
            decayed_weights(weight_decay, learning_rate),
        )
    )
