"""Two small networks trained with averages kept in each way: do few bits train as float32 does?

A dense network on the digits of scikit-learn, and a recurrent one on the characters of
Python's own help texts, five seeds each. Prints the training loss at the end, and draws
its course. Averages rounded to nearest stand beside stochastically rounded ones.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import rmsprop_jax

SEEDS = 5
DECAYS = (0.9, 0.99, 0.999)
BATCH = 64


class Task(NamedTuple):
    """A network and its data.

    Attributes:
      init: From a key to parameters.
      loss: The mean loss of parameters on a batch of examples.
      examples: Arrays with the examples along their first axis.
      learning_rate: One that suits it.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    examples: Any
    learning_rate: float


class Storage(NamedTuple):
    """How parameters and averages are kept.

    Attributes:
      optimizer: Makes one, of a learning rate and a decay.
      dtype: That of parameters and gradients.
      apply: From parameters, updates and the number of the step to parameters.
      traced: Whether the decay may be traced; in Optax it would widen a bfloat16 average.
    """

    optimizer: Callable[..., optax.GradientTransformation]
    dtype: Any = jnp.float32
    apply: Callable[[Any, Any, Any], Any] = lambda params, updates, _: optax.apply_updates(
        params, updates
    )
    traced: bool = True


def ours(accumulator_dtype: Any) -> Callable[..., optax.GradientTransformation]:
    """Our RMSprop with that storage."""
    return partial(rmsprop_jax.rmsprop, accumulator_dtype=accumulator_dtype)


def to_nearest(dtype: Any) -> Callable[..., optax.GradientTransformation]:
    """Optax's RMSprop, its average rounded to the nearest of ``dtype``, scaled by its maximum."""

    class State(NamedTuple):
        inner: Any
        scales: Any

    def rounded(inner: Any) -> Any:
        scales = jax.tree.map(lambda x: jnp.maximum(jnp.max(x), 1e-30) / 2**15, inner)
        return State(
            jax.tree.map(lambda x, scale: (x / scale).astype(dtype), inner, scales), scales
        )

    def make(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
        optimizer = optax.rmsprop(learning_rate, decay)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            wide = jax.tree.map(lambda x, s: x.astype(jnp.float32) * s, state.inner, state.scales)
            updates, inner = optimizer.update(updates, wide, params)
            return updates, rounded(inner)

        return optax.GradientTransformation(lambda params: rounded(optimizer.init(params)), update)

    return make


STORAGES = {
    "float32": Storage(ours(None)),
    "bfloat16": Storage(ours("bfloat16")),
    "one byte": Storage(ours("float8_e5m2")),
    "all bfloat16, one byte": Storage(ours("float8_e5m2"), jnp.bfloat16, rmsprop_jax.apply_updates),
}
NEAREST = {
    "bfloat16, to nearest": Storage(to_nearest(jnp.bfloat16)),
    "one byte, to nearest": Storage(to_nearest(jnp.float8_e5m2)),
    "all bfloat16, to nearest": Storage(optax.rmsprop, jnp.bfloat16, traced=False),
}


def digits() -> Task:
    """A network with one hidden layer on handwritten digits of 8 by 8."""
    images, labels = load_digits(return_X_y=True)

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "hidden": {"w": jax.random.normal(first, (64, 64)) / 8, "b": jnp.zeros(64)},
            "output": {"w": jax.random.normal(second, (64, 10)) / 8, "b": jnp.zeros(10)},
        }

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        hidden = images.astype(params["hidden"]["w"].dtype) @ params["hidden"]["w"]
        hidden = jnp.tanh(hidden + params["hidden"]["b"])
        logits = hidden @ params["output"]["w"] + params["output"]["b"]
        return cross_entropy(logits, labels)

    examples = (jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels))
    return Task(init, loss, examples, learning_rate=1e-3)


def characters() -> Task:
    """An Elman network that reads Python's help texts and foretells their next character."""
    text = np.frombuffer("".join(topics.values())[:65_536].encode("ascii", "replace"), np.uint8)
    alphabet, text = np.unique(text, return_inverse=True)
    length, width, size = 32, 64, len(alphabet)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (size, width)) / 8,
            "recurrent": jax.random.normal(keys[1], (width, width)) / 8,
            "output": {"w": jax.random.normal(keys[2], (width, size)) / 8, "b": jnp.zeros(size)},
        }

    def loss(params: Any, batch: Any) -> jax.Array:
        def read(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.tanh(params["embedding"][x] + state @ params["recurrent"])
            return state, state

        start = jnp.zeros((len(batch), width), params["recurrent"].dtype)
        _, states = jax.lax.scan(read, start, batch[:, :-1].T)
        logits = states @ params["output"]["w"] + params["output"]["b"]
        return cross_entropy(logits, batch[:, 1:].T)

    count = len(text) // (length + 1)
    examples = jnp.asarray(text[: count * (length + 1)].reshape(count, length + 1))
    return Task(init, loss, examples, learning_rate=1e-3)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross entropy, in float32, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return losses.mean()


TASKS = {"digits": digits, "characters": characters}


def train(task: Task, storage: Storage, epochs: int) -> np.ndarray:
    """The loss on all examples after each epoch: (decays, seeds, epochs)."""
    examples = len(jax.tree.leaves(task.examples)[0])
    steps = examples // BATCH

    def run(decay: Any, key: jax.Array) -> jax.Array:
        optimizer = storage.optimizer(task.learning_rate, decay)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state, count = carry
            gradients = jax.grad(task.loss)(params, jax.tree.map(lambda x: x[batch], task.examples))
            updates, state = optimizer.update(gradients, state, params)
            return (storage.apply(params, updates, count), state, count + 1), None

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            order = jax.random.permutation(key, examples)[: steps * BATCH].reshape(steps, BATCH)
            carry, _ = jax.lax.scan(step, carry, order)
            params = jax.tree.map(lambda p: p.astype(jnp.float32), carry[0])
            return carry, task.loss(params, task.examples)

        key, init_key = jax.random.split(key)
        params = jax.tree.map(lambda p: p.astype(storage.dtype), task.init(init_key))
        carry = (params, optimizer.init(params), jnp.int32(0))
        return jax.lax.scan(epoch, carry, jax.random.split(key, epochs))[1]

    seeds = jax.random.split(jax.random.key(0), SEEDS)
    over_seeds = jax.vmap(run, in_axes=(None, 0))
    if storage.traced:
        over_decays = jax.vmap(over_seeds, in_axes=(0, None))
        return np.asarray(jax.jit(over_decays)(jnp.asarray(DECAYS), seeds))
    return np.stack([jax.jit(partial(over_seeds, decay))(seeds) for decay in DECAYS])


def draw(results: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One panel per task and decay: the loss by step, its mean and range over seeds."""
    figure, axes = plt.subplots(
        len(results), len(DECAYS), figsize=(12, 7), squeeze=False, layout="constrained"
    )
    for row, (task, losses) in zip(axes, results.items(), strict=True):
        for i, (panel, decay) in enumerate(zip(row, DECAYS, strict=True)):
            for name, loss in losses.items():
                color, line = STYLES[name]
                epochs = np.arange(1, loss.shape[-1] + 1)
                panel.plot(epochs, loss[i].mean(0), line, color=color, label=name)
                if name == "float32":
                    panel.fill_between(epochs, loss[i].min(0), loss[i].max(0), color="0.85")
            # What falls by powers of ten is seen on a logarithmic axis.
            panel.set_yscale("log" if task == "digits" else "linear")
            panel.set(title=f"{task}, decay {decay}", xlabel="epoch")
        row[0].set_ylabel("training loss (nats)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# Colours that the colour-blind can tell apart; what is rounded to nearest is dashed.
STYLES = {
    "float32": ("black", "-"),
    "bfloat16": ("#0072b2", "-"),
    "one byte": ("#d55e00", "-"),
    "all bfloat16, one byte": ("#009e73", "-"),
    "bfloat16, to nearest": ("#0072b2", "--"),
    "one byte, to nearest": ("#d55e00", "--"),
    "all bfloat16, to nearest": ("#009e73", "--"),
}


def main() -> None:
    """Prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=[150, 12], metavar=("DIGITS", "CHARACTERS"),
        help="passes over the data",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("training.png"), help="the picture")
    args = parser.parse_args()
    if min(args.epochs) < 1:
        parser.error("--epochs must be at least 1")

    results: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=len(TASKS) * len(STORAGES | NEAREST), unit="run") as progress:
        for (name, make), epochs in zip(TASKS.items(), args.epochs, strict=True):
            task, results[name] = make(), {}
            for storage_name, storage in (STORAGES | NEAREST).items():
                results[name][storage_name] = train(task, storage, epochs)
                progress.update()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; epochs {args.epochs}")
    print(f"training loss at the end, mean of {SEEDS} seeds; of float32 also least and most\n")
    columns = [(task, i) for task in results for i in range(len(DECAYS))]
    print(f"| {'storage':26} | " + " | ".join(f"{t[:6]} {DECAYS[i]:<5}" for t, i in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in STORAGES | NEAREST:
        ends = [results[task][name][i, :, -1].mean() for task, i in columns]
        print(f"| {name:26} | " + " | ".join(f"{end:12.4f}" for end in ends) + " |")
    for name, end in (("float32, least", np.min), ("float32, most", np.max)):
        ends = [end(results[task]["float32"][i, :, -1]) for task, i in columns]
        print(f"| {name:26} | " + " | ".join(f"{x:12.4f}" for x in ends) + " |")
    draw(results, args.output)
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
