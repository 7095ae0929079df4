"""Balances gymnax's CartPole with DQN and the RMSprop of DQN's paper, in one compiled program.

Environments, replay and training run inside one scan, for five seeds under one vmap. It is
called fifty times, for a progress bar and an evaluation after each. Of the Nature paper's
constants, chosen for Atari, the discount, the decay of the averages, the error clipping and
the first and last exploration rate are kept. What is changed, and why:

- Eight environments, one update of 64 transitions for each of their steps, one hidden layer,
  observations scaled to about one: this is a small task, to be done in a minute.
- Each step is rewarded with 1 - discount, so that a pole that never falls is worth 1, not 100.
  With a reward of 1 the median over seeds was 96: values of 100 need large weights.
- The learning rate is 0.003 and eps 1e-5, not 0.00025 and 0.01: there are 25 000 updates, not
  millions, and with values of 1 the gradients are 0.01 or less, so that with Nature's eps, whose
  root is 0.1, RMSprop becomes slow SGD. With both as in Nature the median was 279; with one of
  them it was 480 to 500, and not every seed reached 400.
- The player is an average of the weights over about the last fifth of training: the weights
  themselves balance in one evaluation and fall in the next.
- Double Q-learning, and targets that follow by 1 % per update, instead of copies. The
  values still end above what is possible (right panel), as the maximum of several uncertain
  values does; for playing, only their order matters.
- The replay buffer keeps every step, including the early falls.

Needs gymnax: the extra `rl`.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flags
import gymnax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

from rmsprop_jax import dialects

SEEDS = 5
ENVIRONMENTS = 8
BATCH = 64
HIDDEN = 256
DISCOUNT = 0.99
TARGET_RATE = 0.01
AVERAGED = 0.2
EPS = 1e-5
FIRST_EPSILON, LAST_EPSILON, EXPLORING = 1.0, 0.1, 0.3
EVALUATIONS = 50
EPISODES = 20
LONGEST = 500
CLAIM = 400
# About the largest position, speed, angle and angular speed of a pole that stands.
SCALE = np.array([2.4, 2.0, 0.2, 2.0], np.float32)
# Okabe and Ito's palette.
ORANGE, BLUE, GREEN, GREY = "#D55E00", "#0072B2", "#009E73", "#555555"

CARTPOLE, CARTPOLE_PARAMS = gymnax.make("CartPole-v1")
reset = jax.vmap(partial(CARTPOLE.reset, params=CARTPOLE_PARAMS))
move = jax.vmap(partial(CARTPOLE.step, params=CARTPOLE_PARAMS))

Params = dict[str, jax.Array]


class Transition(NamedTuple):
    """What the agent saw, did and received; the leading axis is that of transitions."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_observation: jax.Array


class Agent(NamedTuple):
    """Everything that training changes; under vmap, with a leading axis for the seeds."""

    params: Params
    target: Params
    average: Params
    optimizer_state: optax.OptState
    replay: Transition
    environments: Any
    observations: jax.Array


class History(NamedTuple):
    """Means over the greedy episodes of one evaluation; stacked, one row per evaluation."""

    returns: Any
    discounted: Any
    estimates: Any


def q_values(params: Params, observations: jax.Array) -> jax.Array:
    """The network's values of both actions, of shape (n, 2)."""
    hidden = jax.nn.relu(observations / SCALE @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def loss_of(params: Params, target: Params, batch: Transition) -> jax.Array:
    """Double Q-learning: the network chooses the next action, the target network values it.

    Only a fall ends the future; an episode cut off at the maximum length would have continued.
    """
    best = q_values(params, batch.next_observation).argmax(axis=1)
    future = of_actions(q_values(target, batch.next_observation), best)
    goal = batch.reward + DISCOUNT * jnp.where(batch.terminated, 0.0, future)
    return optax.huber_loss(
        of_actions(q_values(params, batch.observation), batch.action), goal
    ).mean()


def of_actions(values: jax.Array, actions: jax.Array) -> jax.Array:
    """The value of each row's action."""
    return jnp.take_along_axis(values, actions[:, None], axis=1)[:, 0]


def start(key: jax.Array, optimizer: optax.GradientTransformation, capacity: int) -> Agent:
    """An agent that has seen nothing."""
    first, second, environments = jax.random.split(key, 3)
    he = jax.nn.initializers.he_normal()
    params = {
        "w1": he(first, (4, HIDDEN)),
        "b1": jnp.zeros(HIDDEN),
        "w2": he(second, (HIDDEN, 2)),
        "b2": jnp.zeros(2),
    }
    replay = Transition(
        observation=jnp.zeros((capacity, 4)),
        action=jnp.zeros(capacity, jnp.int32),
        reward=jnp.zeros(capacity),
        terminated=jnp.zeros(capacity, bool),
        next_observation=jnp.zeros((capacity, 4)),
    )
    observations, states = reset(jax.random.split(environments, ENVIRONMENTS))
    return Agent(params, params, params, optimizer.init(params), replay, states, observations)


def act(agent: Agent, epsilon: jax.Array, key: jax.Array) -> tuple[Agent, Transition]:
    """One step in each environment, at random with probability epsilon; ended ones are reset."""
    coin_key, action_key, step_key = jax.random.split(key, 3)
    actions = jnp.where(
        jax.random.bernoulli(coin_key, epsilon, (ENVIRONMENTS,)),
        jax.random.randint(action_key, (ENVIRONMENTS,), 0, 2),
        q_values(agent.params, agent.observations).argmax(axis=1),
    )
    observations, states, rewards, terminated, _, info = move(
        jax.random.split(step_key, ENVIRONMENTS), agent.environments, actions
    )
    seen = Transition(
        agent.observations,
        actions,
        rewards * (1 - DISCOUNT),
        terminated,
        info["final_observation"],
    )
    return agent._replace(environments=states, observations=observations), seen


def learn(
    agent: Agent, filled: jax.Array, optimizer: optax.GradientTransformation, key: jax.Array
) -> Agent:
    """Updates network and target, on a batch drawn from the first `filled` transitions."""
    chosen = jax.random.randint(key, (BATCH,), 0, filled)
    batch = jax.tree.map(lambda column: column[chosen], agent.replay)
    gradients = jax.grad(loss_of)(agent.params, agent.target, batch)
    updates, state = optimizer.update(gradients, agent.optimizer_state, agent.params)
    params: Any = optax.apply_updates(agent.params, updates)
    target: Any = optax.incremental_update(params, agent.target, TARGET_RATE)
    return agent._replace(params=params, target=target, optimizer_state=state)


def evaluate(params: Params, key: jax.Array) -> History:
    """Greedy episodes, each from a fresh start to its first end."""

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        states, observations, running = carry
        actions = q_values(params, observations).argmax(axis=1)
        observations, states, rewards, terminated, truncated, _ = move(keys, states, actions)
        return (states, observations, running & ~(terminated | truncated)), rewards * running

    keys = jax.random.split(key, EPISODES)
    observations, states = reset(keys)
    running = jnp.ones(EPISODES, bool)
    _, rewards = jax.lax.scan(step, (states, observations, running), length=LONGEST)
    discounts = (1 - DISCOUNT) * DISCOUNT ** jnp.arange(LONGEST)
    return History(
        returns=rewards.sum(axis=0).mean(),
        discounted=(discounts @ rewards).mean(),
        estimates=q_values(params, observations).max(axis=1).mean(),
    )


def train(args: argparse.Namespace) -> tuple[History, np.ndarray]:
    """The history of all seeds, and the mean return of each on other episodes at the end."""
    steps = args.steps // (EVALUATIONS * ENVIRONMENTS)
    updates = steps * EVALUATIONS
    optimizer = dialects.dqn(args.learning_rate, eps=EPS)
    exploration = optax.linear_schedule(FIRST_EPSILON, LAST_EPSILON, int(EXPLORING * updates))

    def step(agent: Agent, number: jax.Array, key: jax.Array) -> Agent:
        act_key, learn_key = jax.random.split(jax.random.fold_in(key, number))
        agent, seen = act(agent, jnp.asarray(exploration(number)), act_key)
        # The index is the same for all seeds, so that vmap writes the replay in place.
        write = partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=number * ENVIRONMENTS, axis=0
        )
        agent = agent._replace(replay=jax.tree.map(write, agent.replay, seen))
        agent = learn(agent, (number + 1) * ENVIRONMENTS, optimizer, learn_key)
        rate = 1 / (AVERAGED * updates)
        average: Any = optax.incremental_update(agent.params, agent.average, rate)
        return agent._replace(average=average)

    @partial(jax.jit, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, 0, None))
    def run(agent: Agent, key: jax.Array, first: jax.Array) -> Agent:
        numbers = first + jnp.arange(steps)
        return jax.lax.scan(lambda agent, n: (step(agent, n, key), None), agent, numbers)[0]

    start_key, run_key, evaluation_key = jax.random.split(jax.random.key(args.seed), 3)
    make = jax.jit(jax.vmap(partial(start, optimizer=optimizer, capacity=updates * ENVIRONMENTS)))
    agents = make(jax.random.split(start_key, SEEDS))
    run_keys = jax.random.split(run_key, SEEDS)
    evaluate_all = jax.jit(jax.vmap(evaluate))
    *evaluation_keys, last_keys = jax.random.split(evaluation_key, (EVALUATIONS + 1, SEEDS))
    rows = []
    with tqdm(evaluation_keys, unit="evaluation") as bar:
        for number, keys in enumerate(bar):
            agents = run(agents, run_keys, jnp.asarray(number * steps))
            rows.append(jax.device_get(evaluate_all(agents.average, keys)))
            bar.set_postfix(median_return=f"{np.median(rows[-1].returns):.0f}")
    history = jax.tree.map(lambda *values: np.stack(values), *rows)
    return history, np.asarray(evaluate_all(agents.average, last_keys).returns)


def draw(history: History, updates: int, path: Path) -> None:
    """Greedy returns, and expected beside actual values: each seed, and medians."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    steps = np.linspace(0, updates * ENVIRONMENTS, EVALUATIONS + 1)[1:] / 1000

    def plot(axes: Any, values: np.ndarray, color: str, linestyle: str, label: str) -> None:
        first, *_ = axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45)
        first.set_label("each seed")
        middle = np.median(values, axis=1)
        axes.plot(steps, middle, color=color, linestyle=linestyle, linewidth=2.5, label=label)

    plot(left, history.returns, ORANGE, "-", "median of the seeds")
    left.axhline(LONGEST, color=GREY, linestyle=":", label=f"{LONGEST}, the most that there is")
    left.axhline(
        CLAIM, color=GREEN, linestyle="--", label=f"{CLAIM}, asked of the median at the end"
    )
    left.set(
        title="what it plays", ylabel=f"steps balanced, mean of {EPISODES} greedy episodes",
        ylim=(0, 1.04 * LONGEST),
    )  # fmt: skip
    plot(right, history.estimates, BLUE, "--", "what the network expects")
    plot(right, history.discounted, ORANGE, "-", "what it gets")
    right.axhline(1, color=GREY, linestyle=":", label="1, a pole that never falls")
    right.set(title="what it believes", ylabel="discounted return from the start", ylim=(0, None))
    for axes in (left, right):
        axes.set_xlabel("environment steps of each seed, thousands")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.suptitle(f"DQN with centred RMSprop on CartPole, {SEEDS} seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "dqn_cartpole.png")
    chunk = EVALUATIONS * ENVIRONMENTS
    parser.add_argument(
        "--steps",
        type=flags.whole_number,
        default=200_000,
        help=f"environment steps of each seed, a multiple of {chunk}",
    )
    parser.add_argument(
        "--learning-rate",
        type=flags.number_below(100),
        default=3e-3,
        help="learning rate of RMSprop",
    )
    args = parser.parse_args()
    if args.steps % chunk:
        parser.error(f"argument --steps: must be a multiple of {chunk}, got {args.steps}")
    return args


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    history, returns = train(args)
    draw(history, args.steps // ENVIRONMENTS, args.output)
    for number, value in enumerate(returns):
        print(f"seed {number}: mean greedy return {value:.0f}")
    print(
        f"dqn_cartpole: median over {SEEDS} seeds of the mean greedy return over "
        f"{EPISODES} episodes: {np.median(returns):.1f}; "
        f"{jax.devices()[0].device_kind}, {time.perf_counter() - began:.0f} s; "
        f"picture in {args.output}"
    )


if __name__ == "__main__":
    main()
