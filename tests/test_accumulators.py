"""Averages in two bytes and in one: unbiased, of known spread, the same everywhere."""

import functools

import jax
import numpy as np
import pytest
import reference

from rmsprop_jax import scale_by_rms, scale_by_stddev

NARROW = ["bfloat16", "float8_e5m2"]
DECAYS = [0.9, 0.99, 0.999]
# |g| from 1e-9 to 1e4, in three leaves with a factor of 400 in each.
SIZES = {"small": 1e-9, "middle": 1e-3, "large": 25.0}
WIDTH = 3000
MIXED = [{}, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.9}]


@functools.cache
def gradients(kind, steps):
    """Gradients {leaf: (steps, WIDTH)} of each of `SIZES`."""
    rng = np.random.default_rng(0)

    def leaf(size):
        if kind == "heavy-tailed":
            g = rng.standard_t(3, (steps, WIDTH))
        elif kind == "constant":
            g = np.ones((steps, WIDTH))
        else:
            g = rng.standard_normal((steps, WIDTH))
        if kind == "sparse":
            g *= rng.random(g.shape) < 0.1
        if kind == "with a mean":
            g += 1
        return (size * np.geomspace(1, 400, WIDTH) * g).astype(np.float32)

    return {name: leaf(size) for name, size in SIZES.items()}


def last_state(scale_by, g):
    """The state after all ``g``, {leaf: (steps, ...)}, in one compiled loop."""

    def step(state, g):
        return scale_by.update(g, state)[1], None

    first = jax.tree.map(lambda x: x[0], g)
    return jax.jit(lambda g: jax.lax.scan(step, scale_by.init(first), g)[0])(g)


def bias_and_spread(kept, expected):
    """Of an average relative to float64's, and of its root."""
    seen = expected > 0  # a sparse element may not have had a gradient yet
    ratio = np.asarray(kept, np.float64)[seen] / expected[seen]
    return ratio.mean() - 1, np.sqrt(ratio).std()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "sparse", "constant", "with a mean"])
@pytest.mark.parametrize("dtype", NARROW)
def test_average_is_unbiased(dtype, kind, decay):
    g = gradients(kind, steps=round(3 / (1 - decay)))
    centered = kind == "with a mean"
    scale_by = (scale_by_stddev if centered else scale_by_rms)(decay, accumulator_dtype=dtype)
    state = last_state(scale_by, g)
    kept, second_moment = (
        (state.var, reference.variance) if centered else (state.nu, reference.mean_square)
    )
    for leaf, x in g.items():
        bias, spread = bias_and_spread(kept[leaf], second_moment(x.astype(np.float64), decay))
        if dtype == "bfloat16":
            assert abs(bias) <= 0.005, leaf
            assert spread <= 0.03, leaf
        else:
            assert abs(bias) <= 0.01, leaf
            assert spread <= (0.15 if kind == "heavy-tailed" else 0.12), leaf
