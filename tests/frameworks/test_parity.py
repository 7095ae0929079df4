"""The dialects against the frameworks themselves, every option with every other, over 120 steps.

Needs the extra `frameworks`: pytest tests/frameworks.
"""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.frameworks import keras_path, pytorch_path, tensorflow_v1_path
from support.trajectories import assert_same_path, path, problem, scheduled

from rmsprop_jax import dialects

pytestmark = pytest.mark.optimized


def every(**choices):
    """All combinations, as dictionaries."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def check(dialect, framework_path, options, schedule, gradients, params):
    theirs = framework_path(options, gradients, params, schedule)
    ours = dialect(**scheduled(options) if schedule else options)
    assert_same_path(path(ours, gradients, params), theirs, params)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    "options",
    every(
        lr=[1e-2],
        alpha=[0.9, 0.99],
        eps=[1e-8, 1e-2],
        weight_decay=[0.0, 1e-3],
        momentum=[0.0, 0.9],
        centered=[False, True],
        maximize=[False, True],
    ),
    ids=str,
)
def test_pytorch(options, schedule):
    # A gradient that is nothing but weight decay turns where w does, and doubles each rounding.
    gradients, params = problem(seed=0, smallest=1e-3)
    check(dialects.pytorch, pytorch_path, options, schedule, gradients, params)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    "clip", [{}, {"clipnorm": 0.5}, {"clipvalue": 0.1}, {"global_clipnorm": 0.5}], ids=str
)
@pytest.mark.parametrize(
    "options",
    every(
        learning_rate=[1e-2],
        rho=[0.9, 0.99],
        momentum=[0.0, 0.9],
        epsilon=[1e-7],
        centered=[False, True],
        weight_decay=[None, 1e-2],
    ),
    ids=str,
)
def test_keras(options, clip, schedule):
    check(dialects.keras, keras_path, options | clip, schedule, *problem(seed=1))


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    "options",
    every(
        learning_rate=[1e-2],
        decay=[0.9, 0.99],
        momentum=[0.0, 0.9],
        epsilon=[1e-10, 1e-3, 1.0],
        centered=[False, True],
    ),
    ids=str,
)
def test_tensorflow_v1(options, schedule):
    check(dialects.tensorflow_v1, tensorflow_v1_path, options, schedule, *problem(seed=2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_pytorch_takes_a_complex_parameter_as_two_real_ones(centered, momentum):
    options = {"lr": 1e-2, "centered": centered, "momentum": momentum, "weight_decay": 1e-3}
    rng = np.random.default_rng(3)
    g = rng.standard_normal((120, 16)) + 1j * rng.standard_normal((120, 16)) * np.logspace(
        -2, 2, 16
    )
    start = rng.standard_normal(16) + 1j * rng.standard_normal(16)
    w = torch.tensor(start, requires_grad=True)
    theirs = torch.optim.RMSprop([w], **options)
    expected = []
    for step_gradient in g.astype(np.complex64).astype(np.complex128):
        w.grad = torch.tensor(step_gradient)
        theirs.step()
        expected.append(w.detach().numpy().copy())
    ours = path(
        dialects.pytorch(**options),
        {"w": jnp.asarray(g, jnp.complex64)},
        {"w": jnp.asarray(start, jnp.complex64)},
    )
    for part in (np.real, np.imag):
        assert_same_path(
            {"w": part(ours["w"])}, {"w": part(np.stack(expected))}, {"w": part(start)}
        )
