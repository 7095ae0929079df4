"""Against torch.optim.RMSprop itself. Needs the extra `frameworks`: pytest tests/frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import rmsprop_jax

STEPS = 120


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("decay", [0.9, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parameters_are_torchs(centered, decay, momentum, seed):
    """Eps outside the root, a constant rate; in float64, where torch's variance keeps digits."""
    rng = np.random.default_rng(seed)
    g = np.logspace(-6, 3, 32) * rng.standard_normal((STEPS, 32))
    g[rng.random(g.shape) < 0.1] = 0

    w = torch.ones(32, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.RMSprop(
        [w], lr=1e-2, alpha=decay, eps=1e-8, momentum=momentum or 0.0, centered=centered
    )
    ours = rmsprop_jax.rmsprop(
        1e-2, decay, 1e-8, eps_in_sqrt=False, centered=centered, momentum=momentum
    )
    params = jnp.ones(32)
    state = ours.init(params)
    update = jax.jit(ours.update)
    for step_gradients in g.astype(np.float32):
        w.grad = torch.tensor(step_gradients, dtype=torch.float64)
        theirs.step()
        updates, state = update(jnp.asarray(step_gradients), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, w.detach().numpy(), rtol=3e-5, atol=3e-5)
