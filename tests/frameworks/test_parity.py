"""The dialects against the frameworks themselves, every option with every other, over 120 steps.

Needs the extra `frameworks`: pytest tests/frameworks.
"""

import re
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support.frameworks import (
    keras_path,
    pytorch_path,
    stable_baselines3_path,
    tensorflow_v1_path,
    tensorflow_v1_sparse_path,
    tf_keras_path,
    timm_path,
)
from support.pages import ROOT
from support.trajectories import assert_same_path, path, problem, scheduled

import rmsprop_jax
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
    # A gradient of weight decay alone changes sign with w, and doubles each rounding error.
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
        rho=[0.99],
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
        decay=[0.99],
        momentum=[0.0, 0.9],
        epsilon=[1e-10, 1e-3, 1.0],
        centered=[False, True],
    ),
    ids=str,
)
def test_tensorflow_v1(options, schedule):
    check(dialects.tensorflow_v1, tensorflow_v1_path, options, schedule, *problem(seed=2))


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    "clip",
    [{}, {"clipnorm": 0.5, "clipvalue": 0.1}, {"clipvalue": 0.1}, {"global_clipnorm": 0.5}],
    ids=str,
)
@pytest.mark.parametrize(
    "options",
    every(
        learning_rate=[1e-2],
        rho=[0.95],
        momentum=[0.0, 0.9],
        centered=[False, True],
        decay=[0.0, 0.1],
    ),
    ids=str,
)
def test_tf_keras(options, clip, schedule):
    check(dialects.tf_keras, tf_keras_path, options | clip, schedule, *problem(seed=3))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_epsilon_of_tf_keras(epsilon, momentum):
    """Zero means 1e-7 there."""
    options = {"epsilon": epsilon, "momentum": momentum}
    check(dialects.tf_keras, tf_keras_path, options, False, *problem(seed=3))


LIKE_TORCH = {
    "lr": [1e-2],
    "alpha": [0.95],
    "eps": [1e-3],
    "weight_decay": [0.0, 1e-3],
    "momentum": [0.0, 0.9],
    "centered": [False, True],
}


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    "options",
    every(**LIKE_TORCH, decoupled_decay=[False, True], lr_in_momentum=[False, True]),
    ids=str,
)
def test_timm(options, schedule):
    gradients, params = problem(seed=4, smallest=1e-3)
    check(dialects.timm, timm_path, options, schedule, gradients, params)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("options", every(**LIKE_TORCH), ids=str)
def test_stable_baselines3(options, schedule):
    gradients, params = problem(seed=5, smallest=1e-3)
    check(dialects.stable_baselines3, stable_baselines3_path, options, schedule, gradients, params)


@pytest.mark.parametrize("lr_in_momentum", [False, True])
def test_caution_of_timm(lr_in_momentum):
    """With the wrapper that docs/which_rmsprop.md prints."""
    page = (ROOT / "docs" / "which_rmsprop.md").read_text()
    [start] = re.finditer(r"^>>> def cautious", page, re.MULTILINE)
    lines = page[start.start() :].split("\n>>> ")[0].splitlines()
    names = {"jax": jax, "jnp": jnp, "optax": optax}
    exec("\n".join(line[4:] for line in lines), names)
    options = {"lr": 1e-2, "momentum": 0.9, "lr_in_momentum": lr_in_momentum}
    gradients, params = problem(seed=4)
    theirs = timm_path(options | {"caution": True}, gradients, params)
    ours = names["cautious"](dialects.timm(**options))
    assert_same_path(path(ours, gradients, params), theirs, params)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_untouched_rows(centered, momentum, schedule):
    """Each batch has a twentieth of an embedding's rows, some of them twice."""
    options = {"learning_rate": 1e-2, "centered": centered, "momentum": momentum, "epsilon": 1e-3}
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 100, (120, 5))
    values = rng.standard_normal((120, 5, 3)).astype(np.float32)
    table = (0.1 * rng.standard_normal((100, 3))).astype(np.float32)
    dense = np.zeros((120, *table.shape), np.float32)
    for t in range(120):
        np.add.at(dense[t], ids[t], values[t])
    theirs = tensorflow_v1_sparse_path(options, ids, values, table, schedule)
    for optimizer, ours in (
        (rmsprop_jax.untouched_rows(tensorflow_v1(options, schedule)), True),
        (tensorflow_v1(options, schedule), False),
    ):
        taken = path(optimizer, {"w": dense}, {"w": table})
        if ours:
            assert_same_path(taken, {"w": theirs}, {"w": table})
        elif momentum:
            assert abs(taken["w"] - theirs).max() > 0.02


def tensorflow_v1(options, schedule):
    return dialects.tensorflow_v1(**scheduled(options) if schedule else options)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_pytorch_treats_a_complex_parameter_as_two_real_ones(centered, momentum):
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
