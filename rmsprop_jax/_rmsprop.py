r"""RMSprop on one array: the lecture, the paper, and momentum.

Their symbols: g is the gradient, v the moving average of its square, m the moving average of g,
s the variance :math:`v - m^2`, d the decay, b the momentum buffer.

``weight`` is 1 - d, the weight of the newest gradient. It is passed in addition to ``decay``
because the difference loses digits in float32: 1 - 0.9999 is wrong by 0.01 %.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmsprop_jax._numerics import Scalar, abs_sq, difference, divide, sqrt


def rms(
    g: jax.Array,
    v: jax.Array,
    *,
    decay: Scalar,
    weight: Scalar,
    eps: Scalar,
    eps_in_sqrt: bool,
    correction: Scalar = 1,
) -> tuple[jax.Array, jax.Array]:
    """Divides the gradient by the root of the moving average of its square.

    Hinton's slide: ``MeanSquare(w, t) = 0.9 MeanSquare(w, t-1) + 0.1 (dE/dw(t))^2``.
    ``correction`` is Adam's ``1 - d**t``: v is divided by it before the root.

    Returns:
      The scaled gradient, and the new v.
    """
    v = mean_square(g, v, decay=decay, weight=weight)
    return over_root(g, v / correction, eps, eps_in_sqrt), v


def mean_square(g: jax.Array, v: jax.Array, *, decay: Scalar, weight: Scalar) -> jax.Array:
    """The moving average of the square."""
    return decay * v + weight * abs_sq(g)


def stddev(
    g: jax.Array,
    m: jax.Array,
    s: jax.Array,
    *,
    weight: Scalar,
    eps: Scalar,
    eps_in_sqrt: bool,
    start: Scalar = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divides the gradient by its moving standard deviation: Graves, eq. 38 to 40.

    Graves keeps v and m and computes ``v - m**2``, which cancels. Substituting
    ``m' = d m + (1 - d) g``, the mean *after* g, gives

        ``s' = d s + (1 - d) |g - m'|**2 / d``

    exactly, which is never negative. There is another form with the mean before g; this one lets
    XLA update both averages in place. With bias correction ``weight`` falls from 1 to 1 - d, and
    ``start`` is the remaining contribution of a nonzero initial average.

    Returns:
      The scaled gradient, the new m and the new s.
    """
    # Not d m + (1 - d) g: d m can round in the same direction for hundreds of steps, so m drifts.
    m = m + weight * difference(g, m)
    # Scale by 1 / sqrt(d) before squaring, so that the square saturates. Multiply, not divide: XLA
    # turns division into multiplication in some programs only, and the bits would differ.
    from_mean = difference(g, m) * divide(1.0, sqrt(1 - weight))
    s = (s - weight * s) + weight * abs_sq(from_mean)
    return over_root(g, s + start, eps, eps_in_sqrt), m, s


def trace(
    x: jax.Array, b: jax.Array, *, momentum: Scalar, nesterov: bool
) -> tuple[jax.Array, jax.Array]:
    """Momentum, ``b' = momentum * b + x``, or Nesterov momentum, which looks one step ahead.

    Returns:
      The step, and the new b.
    """
    b = momentum * b + x
    return (momentum * b + x if nesterov else b), b


def momentum_over_rms(
    g: jax.Array,
    v: jax.Array,
    b: jax.Array,
    *,
    decay: Scalar,
    weight: Scalar,
    eps: Scalar,
    momentum: Scalar,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Momentum of the gradients first, then division by ``sqrt(v) + eps``: fastai's order.

    Returns:
      The scaled momentum, the new v and the new b.
    """
    b = momentum * b + g
    v = mean_square(g, v, decay=decay, weight=weight)
    return over_root(b, v, eps, eps_in_sqrt=False), v, b


def over_root(g: jax.Array, v: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    """``g / sqrt(v + eps)``, or ``g / (sqrt(v) + eps)``; zero where the denominator is zero."""
    # Zero is the minimum of v, so its derivative is zero there. Computing it could overflow.
    v = jnp.where(v == 0, lax.stop_gradient(v), v)
    return divide(g, sqrt(v + eps) if eps_in_sqrt else sqrt(v) + eps)
