"""What stands in the place of Optax's: the same arguments, the same numbers."""

import inspect
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers as example_libraries

import rmsprop_jax

STEPS = 120


def mixed_scale_gradients(seed):
    """Float32, |g| from 1e-6 to 1e3, a tenth exact zeros."""
    rng = np.random.default_rng(seed)
    g = np.logspace(-6, 3, 32) * rng.standard_normal((STEPS, 32))
    g[rng.random(g.shape) < 0.1] = 0
    return g.astype(np.float32)


def trajectory(optimizer, gradients):
    params = jnp.ones(gradients.shape[1])

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return np.asarray(jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1])


@pytest.mark.parametrize("name", ["rmsprop", "scale_by_rms", "scale_by_stddev"])
def test_positional_arguments_and_defaults_are_optaxs(name):
    ours = inspect.signature(getattr(rmsprop_jax, name)).parameters.values()
    optaxs = inspect.signature(getattr(optax, name)).parameters.values()
    positional = [p for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in optaxs]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str
)
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize(
    ("centered", "bias_correction", "initial_scale"),
    # Not all three of True, True, 0: Optax's corrected variance begins as 0 - 0, at times NaN.
    [
        *product([False], [False, True], [0.0, 1.0]),
        (True, False, 0.0),
        (True, False, 1.0),
        (True, True, 1.0),
    ],
)
def test_parameters_are_optaxs(
    centered, bias_correction, initial_scale, eps_in_sqrt, momentum, seed
):
    """With a schedule, over 120 steps."""
    options = {
        "centered": centered,
        "eps_in_sqrt": eps_in_sqrt,
        "bias_correction": bias_correction,
        "initial_scale": initial_scale,
        **momentum,
    }
    schedule = optax.linear_schedule(1e-2, 1e-4, STEPS)
    # Optax's variance cancels digits wherever gradients are large: there, of one size.
    g = mixed_scale_gradients(seed)
    g = np.random.default_rng(seed).standard_normal(g.shape).astype(np.float32) if centered else g
    ours = trajectory(rmsprop_jax.rmsprop(schedule, **options), g)
    optaxs = trajectory(optax.rmsprop(schedule, **options), g)
    np.testing.assert_allclose(ours, optaxs, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_are_example_libraries(momentum):
    """jax.example_libraries: eps inside the root, the learning rate inside the momentum."""
    g = mixed_scale_gradients(0)

    def schedule(t):
        return 1e-2 * 0.99**t

    init, update, get = example_libraries.rmsprop_momentum(schedule, 0.9, 1e-8, momentum)
    state, expected = init(jnp.ones(g.shape[1])), []
    for t in range(STEPS):
        state = update(t, jnp.asarray(g[t]), state)
        expected.append(get(state))
    ours = trajectory(rmsprop_jax.rmsprop(schedule, momentum=momentum), g)
    np.testing.assert_allclose(ours, np.stack(expected), rtol=3e-5, atol=3e-5)
