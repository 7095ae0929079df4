"""Arithmetic that is safe at zero, at infinity and in float32: arrays and scalars, no trees."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py
from jax.typing import ArrayLike, DTypeLike

Scalar = Any
"""A hyperparameter: an ``ArrayLike`` of shape (), for whose type checkers allow no arithmetic."""


@functools.cache
def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """``dtype``, or float32 if that is wider; a complex dtype counts by its real part."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def widen(x: ArrayLike) -> jax.Array:
    """``x`` in at least float32."""
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    wide = at_least_float32(x.dtype)
    return x if x.dtype == wide else x.astype(wide)


def abs_sq(g: jax.Array) -> jax.Array:
    """``|g|**2``, real even if ``g`` is complex, and never infinite.

    It saturates at a quarter of the largest float. An infinite average would stay infinite, and
    its parameter would never move again. A quarter leaves room for stochastic rounding, which may
    double an average, and for XLA, which rewrites ``v / 2 + g**2 / 2`` as ``(v + g**2) / 2``.
    """
    square = jnp.real(g * jnp.conj(g))
    return jnp.minimum(square, jnp.finfo(square.dtype).max / 4)


def saturate(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Clips a float64 array to what ``dtype`` can hold: an infinite average would stay infinite."""
    if x.dtype != jnp.float64 or jnp.finfo(dtype).bits == 64:
        return x
    largest = float(jnp.finfo(dtype).max) / 4
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest))


def difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a - b``, saturating at the largest float instead of overflowing."""
    if jnp.iscomplexobj(a):
        return jax.lax.complex(difference(a.real, b.real), difference(a.imag, b.imag))
    largest = jnp.finfo(a.dtype).max
    return jnp.clip(a - b, -largest, largest)


def divide(a: Any, b: Any) -> jax.Array:
    """``a / b``; where ``b`` is zero, zero with a zero derivative.

    In float32 the derivative, about ``1 / b**2``, is finite for b above 1.1e-19.
    """
    return a / jnp.where(b == 0, jnp.inf, b)


def sqrt(x: Any) -> jax.Array:
    """``sqrt(x)`` with a derivative of zero, not infinity, at zero."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


@jax.jit
def next_step(step: jax.Array) -> jax.Array:
    """The next step, an int32. After 2**31 - 1 it cycles through the negative numbers.

    So a hash of it never stops changing. ``optax.safe_increment`` stays at 2**31 - 1.
    """
    return jnp.where(step == -1, jnp.iinfo(jnp.int32).min, step + 1)


@jax.jit
def steps_taken(step: jax.Array) -> jax.Array:
    """How many steps `next_step` has counted, at most 2**31 - 1."""
    return jnp.where(step < 0, jnp.iinfo(jnp.int32).max, step)


@jax.jit
def bias_correction(decay: Scalar, step: jax.Array) -> jax.Array:
    """``1 - decay**step``: the total weight of the gradients in an average that began at zero.

    Computed as Optax does, although this loses digits where the decay is close to one: Optax's
    tests compare the two to 1e-6.
    """
    return 1 - power(decay, step)


@jax.jit
def corrected_start(decay: Scalar, step: jax.Array) -> jax.Array:
    """``decay**step / (1 - decay**step)``: the weight of the start in a bias-corrected average."""
    return power(decay, step) / bias_correction(decay, step)


def power(decay: Scalar, step: jax.Array) -> jax.Array:
    """``decay**step`` in floats: an integer power rounds differently with and without jit."""
    return decay ** step.astype(float)


@jax.jit
def newest_weight(decay: Scalar, step: jax.Array) -> jax.Array:
    """``(1 - decay) / (1 - decay**step)``: the newest gradient's weight after bias correction.

    Computed as ``1 / (1 + decay + ... + decay**(step - 1))``, which is exactly one at the first
    step and loses no digits where ``decay`` is close to one.
    """
    # At a decay of zero the logarithm has no derivative. 1 - decay has the right one.
    safe = jnp.where(decay == 0, 0.5, decay)
    log_of_last = xlog1py((step - 1).astype(float), safe - 1)
    weight = 1 / (1 + safe * -jnp.expm1(log_of_last) / (1 - safe))
    return jnp.where(decay == 0, jnp.where(step == 1, 1, 1 - decay), weight)


def norm(arrays: Iterable[jax.Array]) -> jax.Array:
    """The L2 norm of all elements of all arrays, with a derivative of zero at zero."""
    squares = (jnp.sum(jnp.real(g * jnp.conj(g))) for g in arrays)
    return sqrt(sum(squares, start=jnp.zeros([])))


def clip_to_norm(g: jax.Array, norm: jax.Array, limit: Scalar) -> jax.Array:
    """Scales ``g`` by ``limit / max(norm, limit)``; zero if ``norm`` is infinite."""
    return g * divide(limit, jnp.maximum(norm, limit))
