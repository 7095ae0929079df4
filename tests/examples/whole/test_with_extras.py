"""DQN's goal and the ends of its episodes, and the flags of every example."""

import re

import char_rnn
import dialects
import dqn_cartpole
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quickstart
import resume_from_torch
import train_distributed
import wgan


def constant(left, right):
    """A network whose values are the same everywhere."""
    return {
        "w1": jnp.zeros((4, 8)),
        "b1": jnp.zeros(8),
        "w2": jnp.zeros((8, 2)),
        "b2": jnp.array([left, right]),
    }


@pytest.mark.parametrize(
    ("terminated", "goal"),
    # The network prefers the second action; the target network says what that is worth, 0.3.
    [(False, 0.01 + 0.99 * 0.3), (True, 0.01)],
)
def test_goal_is_double_q(terminated, goal):
    batch = dqn_cartpole.Transition(
        observation=jnp.zeros((1, 4)),
        action=jnp.zeros(1, jnp.int32),
        reward=jnp.full(1, 0.01),
        terminated=jnp.full(1, terminated),
        next_observation=jnp.zeros((1, 4)),
    )
    params, target = constant(0.1, 0.2), constant(0.7, 0.3)
    loss, gradients = jax.value_and_grad(dqn_cartpole.loss_of)(params, target, batch)
    np.testing.assert_allclose(loss, (0.1 - goal) ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(gradients["b2"], [0.1 - goal, 0], rtol=1e-5, atol=1e-7)


def test_a_full_episode_is_truncated_and_not_terminated():
    states = dqn_cartpole.reset(jax.random.split(jax.random.key(0), 1))[1]
    states = states.replace(time=jnp.full(1, dqn_cartpole.LONGEST - 1))
    keys = jax.random.split(jax.random.key(1), 1)
    observations, _, _, terminated, truncated, info = dqn_cartpole.move(keys, states, jnp.ones(1))
    assert truncated[0]
    assert not terminated[0]
    assert not np.allclose(observations, info["final_observation"])


def test_steps_that_do_not_divide_are_rejected(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dqn_cartpole.py", "--steps", "401"])
    with pytest.raises(SystemExit, match="2"):
        dqn_cartpole.parse_arguments()
    assert "--steps: must be a multiple of 400, got 401" in capsys.readouterr().err


@pytest.mark.parametrize(
    "example",
    [char_rnn, dialects, dqn_cartpole, quickstart, resume_from_torch, train_distributed, wgan],
    ids=lambda module: module.__name__,
)
def test_help_has_every_default(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [example.__name__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        example.parse_arguments()
    text = capsys.readouterr().out
    help_of_options = text[text.index("  --") :]
    assert help_of_options.count("(default:") == len(re.findall(r"^  --", text, re.MULTILINE)) >= 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "3", "--processes", "2"], "--devices: must be a multiple of 2, got 3"),
        (["--cluster", "--processes", "2"], "--processes: on a cluster the scheduler starts"),
    ],
)
def test_distributed_flags_that_do_not_fit_are_rejected(flags, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_distributed.py", *flags])
    with pytest.raises(SystemExit, match="2"):
        train_distributed.parse_arguments()
    assert message in capsys.readouterr().err
