"""The mathematics of RMSprop on one array: averages that forget, and the denominator.

Everything here is a pure function of arrays and scalars: no pytrees, no Optax.
The symbols are those of the lecture and the papers: ``g`` a gradient, ``v`` the
decaying average of ``|g|**2``, ``m`` that of ``g``, ``s = v - |m|**2`` the variance.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py

Scalar = float | jax.Array
"""A hyperparameter: a number, or a traced scalar."""


def squared_magnitude(g: jax.Array) -> jax.Array:
    """``|g|**2``, real also where ``g`` is complex, and never infinite.

    It saturates at half of the largest float. An infinite average would never
    forget, and its parameter would stand still for good.
    """
    square = jnp.real(g * jnp.conj(g))
    return jnp.minimum(square, jnp.finfo(square.dtype).max / 2)


def decaying_average(x: jax.Array, average: jax.Array, decay: Scalar) -> jax.Array:
    """``decay * average + (1 - decay) * x``."""
    return decay * average + (1 - decay) * x


def decaying_mean(g: jax.Array, mean: jax.Array, weight: Scalar) -> jax.Array:
    """`decaying_average` of values whose spread may be far smaller than they are.

    ``weight`` is that of ``g``, 1 - decay. Here only the last sum rounds at the size
    of the mean, and its error has either sign. In the form above ``decay * mean``
    rounds the same way for hundreds of steps, and that adds up: at decay 0.999 to a
    tenth of the spread, where that is 1e-4 of the mean.
    """
    return mean + weight * (g - mean)


def decaying_variance(
    g: jax.Array, mean: jax.Array, variance: jax.Array, weight: Scalar
) -> jax.Array:
    """The variance ``v - |m|**2`` after ``g``, without the subtraction that cancels.

    With ``m`` the mean *after* ``g`` and ``d = 1 - weight``,

        ``s' = d s + (1 - d) |g - m|**2 / d``

    holds exactly (put ``m = d m_before + (1 - d) g`` into ``v - |m|**2``), and is
    never negative. The mean before ``g`` would give a second form; this one lets
    XLA update both averages in place.
    """
    # The root of d goes inside, where the square saturates; as a factor, since of a quotient XLA
    # makes one in some programs and not in others, with other bits.
    spread = squared_magnitude((g - mean) * divide(1.0, sqrt(1 - weight)))
    return (variance - weight * variance) + weight * spread


def decaying_sum(x: jax.Array, total: jax.Array, decay: Scalar) -> jax.Array:
    """``decay * total + x``: heavy-ball momentum."""
    return decay * total + x


def bias_correction(decay: Scalar, count: jax.Array) -> jax.Array:
    """``1 - decay**count``: how much of an average that began at zero is data.

    With the digits that this form has, not all that there are: Optax's tests ask
    for the same to 1e-6, Adam included.
    """
    return 1 - power(decay, count)


def corrected_start(decay: Scalar, count: jax.Array) -> jax.Array:
    """``decay**count / (1 - decay**count)``: what bias correction makes of a start of one."""
    return power(decay, count) / bias_correction(decay, count)


def power(decay: Scalar, count: jax.Array) -> jax.Array:
    """``decay**count`` in floats: an integer's power rounds otherwise under jit than without."""
    return decay ** count.astype(float)


def newest_weight(decay: Scalar, count: jax.Array) -> jax.Array:
    """``(1 - decay) / (1 - decay**count)``: the newest weight in a bias-corrected average.

    Computed as ``1 / (1 + decay + ... + decay**(count - 1))``, which is exactly one
    at the first step and keeps its digits where ``decay`` is close to one.
    """
    log_of_last = xlog1py((count - 1).astype(float), decay - 1)
    return 1 / (1 + decay * -jnp.expm1(log_of_last) / (1 - decay))


def normalize(g: jax.Array, second_moment: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    """``g / sqrt(v + eps)``, or ``g / (sqrt(v) + eps)``; zero where the denominator is."""
    if eps_in_sqrt:
        return divide(g, sqrt(second_moment + eps))
    return divide(g, sqrt(second_moment) + eps)


def sqrt(x: Scalar) -> jax.Array:
    """``sqrt(x)``, whose derivative at zero is zero instead of infinite."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def norm(arrays: Iterable[jax.Array]) -> jax.Array:
    """The L2 norm of all elements of all arrays, whose derivative at zero is zero."""
    squares = (jnp.sum(jnp.real(g * jnp.conj(g))) for g in arrays)
    return sqrt(sum(squares, start=jnp.zeros([])))


def shrink(g: jax.Array, norm: jax.Array, limit: Scalar) -> jax.Array:
    """``g``, made smaller by as much as ``norm`` is above ``limit``; zero if that is infinite."""
    return g * divide(limit, jnp.maximum(norm, limit))


def divide(a: Scalar, b: Scalar) -> jax.Array:
    """``a / b``, and zero with a zero derivative where ``b`` is zero.

    The derivative forms ``1 / b**2``: in float32 it is finite from ``b = 1e-19`` on.
    """
    return a / jnp.where(b == 0, jnp.inf, b)
