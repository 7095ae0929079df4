"""The algorithm's numbers, against the float64 reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import reference
from support.trajectories import compiled, run

import rmsprop_jax

STEPS = 200
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


def mixed_scale_gradients(steps=STEPS, width=64, seed=0):
    """Float32 gradients: |g| from 1e-9 to 1e4, within a factor of 400 per column, a tenth zeros."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-9, 4, width)
    size = np.exp(rng.uniform(np.log(0.05), np.log(20), (steps, width)))
    g = scale * size * rng.choice([-1, 1], (steps, width))
    g[rng.random(g.shape) < 0.1] = 0
    return g.astype(np.float32)


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("initial_scale", [0.0, 1.0])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("centered", [False, True])
def test_scaled_gradients(centered, eps_in_sqrt, bias_correction, initial_scale, decay):
    options = {
        "decay": decay,
        "initial_scale": initial_scale,
        "eps_in_sqrt": eps_in_sqrt,
        "bias_correction": bias_correction,
    }
    scale_by = rmsprop_jax.scale_by_stddev if centered else rmsprop_jax.scale_by_rms
    g = mixed_scale_gradients()
    ours, _ = run(scale_by(**options), g, np.zeros(g.shape[1], np.float32))
    expected = reference.scaled_gradients(g.astype(np.float64), centered=centered, **options)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("momentum", MOMENTA, ids=["none", "heavy-ball", "nesterov"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_updates(centered, eps_in_sqrt, bias_correction, schedule, weight_decay, momentum):
    options = {
        "centered": centered,
        "eps_in_sqrt": eps_in_sqrt,
        "bias_correction": bias_correction,
        "weight_decay": weight_decay,
        **momentum,
    }
    rate = (lambda t: 1e-3 * 0.99**t) if schedule else 1e-3
    g = mixed_scale_gradients()
    params = np.linspace(-2, 2, g.shape[1], dtype=np.float32)
    ours, _ = run(rmsprop_jax.rmsprop(rate, **options), g, params)
    expected = reference.rmsprop(g.astype(np.float64), params.astype(np.float64), rate, **options)
    # Relative to the parameter's largest update: a sum of steps of both signs passes through zero.
    error = abs(ours - expected) / abs(expected).max(axis=0)
    assert error.max() < 1e-5


@pytest.mark.parametrize("magnitude", [1e3, 1e6])
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_variance_does_not_cancel(bias_correction, decay, ratio, magnitude):
    """Mean ``magnitude``, standard deviation 1/``ratio`` of it, until the start is forgotten."""
    checked = [2, 10, 100, 1000, 5000, 20_000]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((checked[-1], 16))
    g = (magnitude * (1 + noise / ratio)).astype(np.float32)
    tx = rmsprop_jax.scale_by_stddev(decay, eps=0.0, bias_correction=bias_correction)
    ours, _ = run(tx, g, np.zeros(16, np.float32))
    assert np.isfinite(ours).all()
    for t in checked:
        s = reference.variance(g[:t].astype(np.float64), decay, bias_correction=bias_correction)
        expected = reference.normalize(g[t - 1].astype(np.float64), s, 0.0, True)
        # The tolerance is the rounding of the gradients themselves: 5e-3 at the largest ratio.
        np.testing.assert_allclose(ours[t - 1], expected, rtol=2e-6 + 5e-7 * ratio)


@pytest.mark.optimized
@pytest.mark.parametrize(
    "options",
    [{}, {"centered": True}, {"momentum": 0.9}, {"bias_correction": True}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_half_precision_trains_as_float32(dtype, options):
    """Each update is that of float32, rounded once to the gradient's dtype."""
    optimizer = rmsprop_jax.rmsprop(1e-2, decay=0.99, eps=1e-16, **options)
    sizes = np.array([[3e-7], [1e-4], [300.0], [6e4]])
    signs = np.random.default_rng(0).choice([-1, 1, 0.5], (100, 4, 16))
    gradients = jnp.asarray(sizes * signs, dtype)
    updates, state = run(optimizer, gradients, jnp.ones((4, 16), dtype))
    float32, _ = run(optimizer, gradients.astype(jnp.float32), jnp.ones((4, 16), jnp.float32))
    assert updates.dtype == dtype
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(updates, np.asarray(float32.astype(dtype)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_half_precision_weights_decay_as_float32(dtype):
    """With the same parameters: the decay is not rounded before it is added."""
    params = jnp.linspace(-1, 1, 1000, dtype=dtype)
    optimizer = rmsprop_jax.rmsprop(1e-2, weight_decay=0.1)
    updates, _ = optimizer.update(params[::-1], optimizer.init(params), params)
    float32, _ = optimizer.update(
        params[::-1].astype(jnp.float32), optimizer.init(params), params.astype(jnp.float32)
    )
    np.testing.assert_array_equal(updates, float32.astype(dtype))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=str)
def test_average_does_not_stall(dtype):
    decay, steps = 0.999, 5000
    tx = rmsprop_jax.scale_by_rms(decay)
    _, state = run(tx, jnp.ones((steps, 1), dtype), jnp.ones(1, dtype))
    np.testing.assert_allclose(state.nu, 1 - decay**steps, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("centered", [False, True])
def test_no_drift_in_a_hundred_thousand_steps(centered, decay):
    steps, last = 100_000, 20_000
    rng = np.random.default_rng(0)
    g = (1 + rng.standard_normal((steps, 4))).astype(np.float32)
    scale_by = rmsprop_jax.scale_by_stddev if centered else rmsprop_jax.scale_by_rms
    updates, _ = run(scale_by(decay), g, np.zeros(4, np.float32))
    # 0.999**20000 is 2e-9: earlier gradients are forgotten.
    second_moment = (reference.variance if centered else reference.mean_square)(
        g[-last:].astype(np.float64), decay
    )
    expected = reference.normalize(g[-1].astype(np.float64), second_moment, 1e-8, True)
    np.testing.assert_allclose(updates[-1], expected, rtol=1e-5)


@pytest.mark.parametrize("scale_by", [rmsprop_jax.scale_by_rms, rmsprop_jax.scale_by_stddev])
def test_counter_does_not_overflow(scale_by):
    """It stays at 2^31 - 1, where bias correction has long had no effect."""
    g = jnp.array([1.0, -2.0])
    uncorrected, corrected = scale_by(), scale_by(bias_correction=True)
    expected, after = uncorrected.update(g, uncorrected.init(g))
    state = corrected.init(g)._replace(count=jnp.int32(2**31 - 1))
    updates, state = corrected.update(g, state)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    for name in set(state._fields) - {"count"}:
        np.testing.assert_allclose(getattr(state, name), getattr(after, name), rtol=1e-6)
    assert state.count == 2**31 - 1


def test_float64(x64):
    g = mixed_scale_gradients(steps=50).astype(np.float64)
    options = {"centered": True, "momentum": 0.9}
    ours, state = run(rmsprop_jax.rmsprop(1e-3, **options), g, np.zeros(g.shape[1]))
    expected = reference.rmsprop(g, np.zeros(g.shape[1]), 1e-3, **options)
    assert ours.dtype == state[0].var.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-16)


def test_complex_averages_the_squared_magnitude():
    rng = np.random.default_rng(0)
    g = (rng.standard_normal((50, 8)) + 1j * rng.standard_normal((50, 8))).astype(np.complex64)
    for centered in (False, True):
        scale_by = rmsprop_jax.scale_by_stddev if centered else rmsprop_jax.scale_by_rms
        ours, state = run(scale_by(), g, np.zeros(8, np.complex64))
        expected = reference.scaled_gradients(g.astype(np.complex128), centered=centered)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
        assert (state.var if centered else state.nu).dtype == jnp.float32


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("decay", "error"), [(0.999, 2e-4), (0.9999, 1e-3), (0.99999, 0.015), (0.999999, 0.1)]
)
def test_decays_with_many_nines(decay, error):
    """For constant gradients v is off by as much as the docstring of `scale_by_rms` says."""
    steps = min(round(8 / (1 - decay)), 2_000_000)
    sizes = np.geomspace(0.5, 2, 16, dtype=np.float32)
    tx = rmsprop_jax.scale_by_rms(decay)

    def step(state, _):
        return tx.update(jnp.asarray(sizes), state)[1], None

    loop = partial(jax.lax.scan, step, length=steps)
    state, _ = compiled(loop, tx.init(jnp.asarray(sizes)))
    expected = sizes.astype(np.float64) ** 2 * (1 - decay**steps)
    assert abs(np.asarray(state.nu) / expected - 1).max() <= error


def test_decay_as_an_array_is_less_exact():
    """By the error of 1 - float32(0.9999): 0.014 % of v."""
    g = np.ones((3000, 1), np.float32)
    expected = 1 - 0.9999**3000
    _, number = run(rmsprop_jax.scale_by_rms(0.9999), g, np.zeros(1, np.float32))
    _, array = run(rmsprop_jax.scale_by_rms(jnp.float32(0.9999)), g, np.zeros(1, np.float32))
    assert abs(number.nu / expected - 1) < 3e-5
    assert 1e-4 < abs(array.nu / expected - 1) < 2e-4


@pytest.mark.parametrize(("decay", "floor"), [(0.9, 3e-7), (0.99, 5e-6), (0.999, 5e-5)])
def test_floor_of_the_standard_deviation(decay, floor):
    """For constant gradients it stops at about this fraction of them, not at zero."""
    g = np.full((round(40 / (1 - decay)), 1), 1.2345, np.float32)
    _, state = run(rmsprop_jax.scale_by_stddev(decay), g, np.zeros(1, np.float32))
    assert np.sqrt(state.var) / 1.2345 <= 2 * floor


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_bound_holds_for_the_sizes_in_the_docstring(decay):
    smallest = 1.1e-19 / np.sqrt(1 - decay)
    g = np.array([[smallest], [9e18], [1e-10]], np.float32)
    for size in g:
        updates, state = run(
            rmsprop_jax.scale_by_rms(decay, eps=0.0), [size], np.zeros(1, np.float32)
        )
        np.testing.assert_allclose(updates[0], 1 / np.sqrt(1 - decay), rtol=1e-3)
    _, state = run(rmsprop_jax.scale_by_rms(decay), [g[0] / 2], np.zeros(1, np.float32))
    assert state.nu == 0
