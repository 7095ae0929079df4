"""Updates are right at zero, at infinity and at the limits of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import reference
from support.layouts import STORAGES
from support.trajectories import compiled, run

import rmsprop_jax
from rmsprop_jax import _numerics

pytestmark = pytest.mark.optimized
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [False, True])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_zero_over_zero_is_zero(centered, eps_in_sqrt, momentum):
    optimizer = rmsprop_jax.rmsprop(
        0.1, eps=0.0, centered=centered, eps_in_sqrt=eps_in_sqrt, **momentum
    )
    updates, _ = run(optimizer, np.zeros((3, 4), np.float32), np.ones(4, np.float32))
    np.testing.assert_array_equal(updates, 0)


@pytest.mark.parametrize("centered", [False, True])
def test_nan_is_not_hidden(centered):
    optimizer = rmsprop_jax.rmsprop(0.1, eps=0.0, centered=centered)
    updates, _ = run(optimizer, [[np.nan, np.inf, 1.0]], np.ones(3, np.float32))
    np.testing.assert_array_equal(np.isfinite(updates), [[False, False, True]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=str)
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("decay", [0.3, 0.9])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_huge_gradient_does_not_freeze_its_parameter(centered, bias_correction, decay, at, dtype):
    """The square of 1e25 overflows float32; an infinite average would stay infinite."""
    optimizer = rmsprop_jax.rmsprop(1.0, decay, centered=centered, bias_correction=bias_correction)
    g = np.ones((1200, 1), dtype)
    g[1::2] = -1
    g[at] *= 1e25
    updates, _ = run(optimizer, g, np.ones(1, dtype))
    assert np.isfinite(updates).all()
    assert abs(updates[-1]) > 0.6


@pytest.mark.optimized
@pytest.mark.parametrize("t", range(1, 20))
def test_bias_correction_is_the_same_under_jit(t):
    """Bit for bit, which an integer power would not be."""
    step = jnp.int32(t)
    with_jit = compiled(lambda step: _numerics.bias_correction(0.999, step), step)
    assert _numerics.bias_correction(0.999, step) == with_jit


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("initial_scale", [0.0, 3e38])
def test_saturated_averages_do_not_add_up_to_infinity(initial_scale, dtype):
    """At a decay of 1/2, XLA adds before it halves."""
    g = np.concatenate([np.full((40, 1000), 2e19), np.ones((300, 1000))]).astype(np.float32)
    tx = rmsprop_jax.scale_by_rms(0.5, initial_scale=initial_scale, accumulator_dtype=dtype)
    updates, _ = run(tx, g, np.zeros(1000, np.float32))
    np.testing.assert_allclose(updates[-1], 1, rtol=0.1)


@pytest.mark.parametrize("accumulator_dtype", ["float32", *STORAGES[1:]])
@pytest.mark.parametrize("centered", [False, True])
def test_float64_gradient_does_not_freeze_a_narrower_average(centered, accumulator_dtype, x64):
    """The average saturates at the largest value that its dtype can store."""
    g = np.ones((3000, 4))
    g[1::2] = -1
    g[3] = 1e25
    scale_by = rmsprop_jax.scale_by_stddev if centered else rmsprop_jax.scale_by_rms
    updates, _ = run(scale_by(accumulator_dtype=accumulator_dtype), g, np.zeros(4))
    assert np.isfinite(updates).all()
    np.testing.assert_allclose(abs(updates[-1]), 1, rtol=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_differences_do_not_overflow(bias_correction, decay, dtype):
    """Gradients of both signs, further apart than the largest float32."""
    large = np.array([[2e38], [-2e38]] * 20)
    small = np.array([[1.0], [-1.0]] * 1500)
    g = np.concatenate([large, small]).astype(dtype)
    tx = rmsprop_jax.scale_by_stddev(decay, bias_correction=bias_correction)
    updates, state = run(tx, g, np.zeros(1, dtype))
    # The first corrected update is g over sqrt(eps), which overflows float32.
    assert np.isfinite(updates[bias_correction:]).all()
    expected = reference.variance(small[:100].astype(np.float64), decay, bias_correction=True)
    np.testing.assert_allclose(np.asarray(state.var), expected, rtol=0.1)


def sum_of_updates(decay, g, **options):
    optimizer = rmsprop_jax.rmsprop(0.1, decay, **options)
    state, moved = optimizer.init(g), 0.0
    for t in range(1, 4):
        updates, state = optimizer.update(g * t, state)
        moved += updates.sum()
    return moved


@pytest.mark.parametrize("eps", [1e-30, 1e-8, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_derivatives_are_finite(bias_correction, centered, decay, eps):
    """With respect to the decay and to gradients, one of them zero, in float32."""
    options = {"eps": eps, "centered": centered, "bias_correction": bias_correction}
    g = jnp.array([1.0, -0.5, 0.0, 2.0])
    derivative = jax.grad(sum_of_updates, argnums=(0, 1))
    assert all(np.isfinite(x).all() for x in derivative(decay, g, **options))


@pytest.mark.parametrize(
    ("centered", "decay"), [(False, 0.0), (False, 0.3), (False, 0.9), (True, 0.3), (True, 0.9)]
)
@pytest.mark.parametrize("bias_correction", [False, True])
def test_derivatives_with_respect_to_the_decay(bias_correction, centered, decay, x64):
    """Against difference quotients, one-sided at a decay of zero."""
    options = {"eps": 0.01, "centered": centered, "bias_correction": bias_correction}
    g, h = jnp.array([1.0, -0.5, 0.0, 2.0]), 1e-6
    low = max(decay - h, 0.0)
    quotient = sum_of_updates(decay + h, g, **options) - sum_of_updates(low, g, **options)
    slope = jax.grad(sum_of_updates)(decay, g, **options)
    np.testing.assert_allclose(slope, quotient / (decay + h - low), rtol=1e-4, atol=1e-4)
