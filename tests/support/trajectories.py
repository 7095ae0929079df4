"""Random problems, the trajectory of an optimizer on one, and how close two of them are.

A problem is fixed gradients for every step: two leaves, mixed scales, exact zeros, and a size
that changes from step to step, so that clipping has an effect.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 120
RATE_DECAY = 0.97


def problem(seed, steps=STEPS, width=24, smallest=1e-6):
    """Gradients {leaf: (steps, n)} and parameters {leaf: (n,)}, float32."""
    rng = np.random.default_rng(seed)

    def leaf(n):
        scale = np.geomspace(smallest, 1e3, n) * np.exp(rng.standard_normal((steps, 1)))
        # A mean as large as the standard deviation, so that centring has an effect.
        g = scale * (rng.standard_normal((steps, n)) + rng.choice([-1, 0, 1], n))
        g[rng.random(g.shape) < 0.1] = 0
        return g.astype(np.float32), (0.1 * rng.standard_normal(n)).astype(np.float32)

    leaves = {"b": leaf(width // 3), "w": leaf(width)}
    gradients, params = ({k: v[i] for k, v in leaves.items()} for i in (0, 1))
    params["w"][::5] = 0
    return gradients, params


def decaying(rate):
    """A schedule that falls by three per cent per step."""
    return lambda step: rate * RATE_DECAY**step


def scheduled(options):
    """The same options with a decaying learning rate, whatever its name."""
    rate = "lr" if "lr" in options else "learning_rate"
    return options | {rate: decaying(options[rate])}


def compiled(function, *args):
    """The result of one program, compiled ahead of time, optimized if the test is marked so."""
    return jax.jit(function).lower(*args).compile()(*args)


def run(optimizer, gradients, params):
    """All updates, and the last state."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    def loop(params, gradients):
        (_, state), updates = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
        return updates, state

    updates, state = compiled(loop, jnp.asarray(params), jnp.asarray(gradients))
    return np.asarray(updates), state


def path(optimizer, gradients, params):
    """The parameters after each step, {leaf: (steps, n)}."""
    taken = compiled(lambda g, w: traced_path(optimizer, g, w), gradients, params)
    return jax.tree.map(np.asarray, taken)


def traced_path(optimizer, gradients, params):
    """The same as JAX arrays, for where hyperparameters are traced."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]


def assert_same_path(ours, theirs, params, rtol=3e-5):
    """Within ``rtol`` of the largest value that each parameter has had so far."""
    assert ours.keys() == theirs.keys()
    for leaf, expected in theirs.items():
        size = np.maximum(np.maximum.accumulate(abs(expected), axis=0), abs(params[leaf]))
        # A parameter that was always zero must be exactly zero.
        error = abs(ours[leaf] - expected) / np.where(size == 0, np.finfo(float).tiny, size)
        worst = np.unravel_index(np.nanargmax(error), error.shape)
        assert np.isfinite(error).all(), f"{leaf}: not finite"
        assert error[worst] <= rtol, f"{leaf}: {error[worst]:.2g} at (step, element) {worst}"
