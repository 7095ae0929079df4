"""What stands in the place of Optax's: the same arguments, the same numbers."""

import inspect

import jax
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers as example_libraries
from paths import assert_same_path, decaying, path, problem

import rmsprop_jax


@pytest.mark.parametrize("name", ["rmsprop", "scale_by_rms", "scale_by_stddev"])
def test_positional_arguments_and_defaults_are_optaxs(name):
    ours = inspect.signature(getattr(rmsprop_jax, name)).parameters.values()
    optaxs = inspect.signature(getattr(optax, name)).parameters.values()
    positional = [p for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in optaxs]


SEEDS = [0, 1]
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("initial_scale", [0.0, 1.0])
def test_parameters_are_optaxs(initial_scale, bias_correction, eps_in_sqrt, momentum, seed):
    """With a schedule, over 120 steps."""
    options = {
        "initial_scale": initial_scale,
        "bias_correction": bias_correction,
        "eps_in_sqrt": eps_in_sqrt,
        **momentum,
    }
    gradients, params = problem(seed)
    ours = path(rmsprop_jax.rmsprop(decaying(1e-2), **options), gradients, params)
    optaxs = path(optax.rmsprop(decaying(1e-2), **options), gradients, params)
    assert_same_path(ours, optaxs, params)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize(
    ("bias_correction", "initial_scale"),
    # Not both True, 0: Optax's corrected variance begins as 0 - 0, in float64 too at times NaN.
    [(False, 0.0), (False, 1.0), (True, 1.0)],
)
def test_centered_parameters_are_optaxs(
    bias_correction, initial_scale, eps_in_sqrt, momentum, seed, x64
):
    """Ours in float32, Optax in float64: its variance is a difference, and float32 cancels it."""
    options = {
        "centered": True,
        "initial_scale": initial_scale,
        "bias_correction": bias_correction,
        "eps_in_sqrt": eps_in_sqrt,
        **momentum,
    }
    gradients, params = problem(seed)
    ours = path(rmsprop_jax.rmsprop(decaying(1e-2), **options), gradients, params)
    assert {leaf.dtype for leaf in ours.values()} == {np.dtype(np.float32)}
    optaxs = path(optax.rmsprop(decaying(1e-2), **options), *as_float64(gradients, params))
    assert_same_path(ours, optaxs, params)


def as_float64(*trees):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), trees)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_are_example_libraries(momentum):
    """jax.example_libraries: eps inside the root, the learning rate inside the momentum."""
    gradients, params = problem(seed=0)
    schedule = decaying(1e-2)
    init, update, get = example_libraries.rmsprop_momentum(schedule, 0.9, 1e-8, momentum)

    def step(state, g):
        t, state = state
        state = update(t, g, state)
        return (t + 1, state), get(state)

    _, expected = jax.lax.scan(step, (0, init(params)), gradients)
    ours = path(rmsprop_jax.rmsprop(schedule, momentum=momentum), gradients, params)
    assert_same_path(ours, jax.tree.map(np.asarray, expected), params)
