"""Trains a small convolutional network on handwritten digits with RMSprop.

The data are scikit-learn's bundled scans, 1797 digits of 8 x 8 pixels; nothing is
downloaded. A third is held out. The network is trained in float32, and then with all in
bfloat16, by Optax's RMSprop and by ours with one byte of state and stochastic rounding.
Optax's SGD, Adagrad and rprop get the same network, batches and number of steps in float32.

With --diagnose N, RMSprop's state is printed as a table every N steps, and its step sizes drawn.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flags
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from rmsprop_jax import Diagnoses, apply_updates, diagnose, rmsprop

FLOAT32, OPTAX, OURS = "RMSprop, float32", "Optax, all bfloat16", "ours, bfloat16"
# Colours of Okabe and Ito, and a line style each: readable without colour too.
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#D55E00", "linewidth": 4},
    OPTAX: {"color": "#0072B2", "linestyle": "--", "linewidth": 2},
    FLOAT32: {"color": "black", "linewidth": 1.2},
    "SGD": {"color": "#A0458A", "linestyle": "--"},
    "Adagrad": {"color": "#009E73", "linestyle": "-."},
    "rprop": {"color": "#555555", "linestyle": ":"},
}
EPS = 1e-8  # of RMSprop, inside the root; Optax's default


class Digits(NamedTuple):
    """Images of shape (n, 8, 8, 1) with values from 0 to 1, and labels of shape (n,)."""

    images: jax.Array
    labels: jax.Array


def add(params: Any, updates: Any, _: Any) -> Any:
    """Optax's way to add updates, rounded to nearest."""
    return optax.apply_updates(params, updates)


class Run(NamedTuple):
    """An optimizer, the dtype of parameters and gradients, and what adds a step's updates."""

    optimizer: optax.GradientTransformation
    dtype: Any = jnp.float32
    apply: Callable[[Any, Any, Any], Any] = add


class History(NamedTuple):
    """Bytes per parameter, and of its state; each step's loss, each epoch's held-out accuracy."""

    parameter_bytes: float
    state_bytes: float
    losses: list[float]
    accuracies: list[float]

    @property
    def epoch_losses(self) -> np.ndarray:
        """The mean of each epoch."""
        return np.reshape(self.losses, (len(self.accuracies), -1)).mean(axis=1)

    @property
    def memory(self) -> str:
        """In words."""
        return f"{self.parameter_bytes:.0f} bytes + {self.state_bytes:.0f} of state"


class Watch:
    """Prints what an optimizer's state says every so many steps, and keeps its step sizes."""

    def __init__(self, every: int, learning_rate: optax.Schedule):
        self.every, self.learning_rate = every, learning_rate
        self.steps: list[int] = []
        self.sizes: dict[str, list[np.ndarray]] = {}

    def __call__(self, step: int, diagnoses: Diagnoses) -> None:
        """Takes the diagnosis of a step; its step sizes are learning rate / sqrt(v + eps)."""
        tqdm.write(f"step {step}\n{diagnoses}\n")
        self.steps.append(step)
        for path, leaf in diagnoses.items():
            roots = np.array([leaf.root_v_5, leaf.root_v_50, leaf.root_v_95])
            sizes = np.asarray(self.learning_rate(step - 1)) / np.sqrt(roots**2 + EPS)
            self.sizes.setdefault(path, []).append(sizes)

    def draw(self, path: Path) -> None:
        """One panel for each kernel: the median step size, and where nine in ten of them are."""
        kernels = {name: np.array(x) for name, x in self.sizes.items() if "kernel" in name}
        figure, panels = plt.subplots(
            1, len(kernels), figsize=(11, 3.4), sharey=True, layout="constrained"
        )
        for axes, (name, sizes) in zip(panels, kernels.items(), strict=True):
            shortest, median, longest = sizes.T[::-1]
            axes.fill_between(self.steps, shortest, longest, alpha=0.25, label="nine in ten")
            axes.plot(self.steps, median, label="median")
            axes.set(xlabel="step", yscale="log", title=name)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("learning rate / sqrt(v + eps)")
        panels[0].legend()
        figure.suptitle("How far a gradient of one would move each weight: RMSprop's step sizes")
        figure.savefig(path, dpi=120)
        plt.close(figure)


class Network(nnx.Module):
    """Two convolutions, one pooling, two dense layers: 34 000 parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 56, rngs=rngs)
        self.output = nnx.Linear(56, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of shape (n, 10)."""
        x = nnx.relu(self.first(images))
        x = nnx.relu(self.second(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.output(x)


def load(seed: int) -> tuple[Digits, Digits]:
    """Digits to train on, and a third held out, with every digit as frequent in both."""
    data: Any = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    parts = train_test_split(
        images, data.target, test_size=1 / 3, stratify=data.target, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, parts)
    return Digits(train_images, train_labels), Digits(test_images, test_labels)


def compile_step(run: Run, graph: Any) -> Callable[..., tuple[Any, Any, Any, jax.Array]]:
    """From parameters, state, batch and a count: new parameters and state, updates and loss."""

    def loss_of(params: nnx.State, batch: Digits) -> jax.Array:
        logits = nnx.merge(graph, params)(batch.images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: nnx.State, state: optax.OptState, batch: Digits, count: int
    ) -> tuple[Any, optax.OptState, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = run.optimizer.update(gradients, state, params)
        return run.apply(params, updates, count), state, updates, loss

    return step


def train(
    run: Run,
    data: tuple[Digits, Digits],
    args: argparse.Namespace,
    name: str,
    watch: Watch | None = None,
) -> History:
    """Trains the network from the same start on the same batches, whatever the optimizer."""
    training, held_out = (part._replace(images=part.images.astype(run.dtype)) for part in data)
    graph, params = nnx.split(Network(nnx.Rngs(args.seed)), nnx.Param)
    params = jax.tree.map(lambda p: p.astype(run.dtype), params)
    state = run.optimizer.init(params)
    step = compile_step(run, graph)

    @jax.jit
    def accuracy(params: nnx.State) -> jax.Array:
        logits = nnx.merge(graph, params)(held_out.images)
        return (logits.argmax(axis=-1) == held_out.labels).mean()

    rng = np.random.default_rng(args.seed)
    elements = sum(leaf.size for leaf in jax.tree.leaves(params))
    history = History(size_of(params) / elements, size_of(state) / elements, [], [])
    taken = 0
    with tqdm(range(args.epochs), desc=f"{name:19}", unit="epoch") as bar:
        for _ in bar:
            losses = []
            for chosen in epoch_batches(rng, len(training.labels), args.batch_size):
                batch = Digits(training.images[chosen], training.labels[chosen])
                params, state, updates, loss = step(params, state, batch, taken)
                losses.append(loss)
                taken += 1
                if watch is not None and taken % watch.every == 0:
                    watch(taken, jax.jit(diagnose)(state, params, updates))
            history.losses.extend(map(float, losses))
            history.accuracies.append(float(accuracy(params)))
            bar.set_postfix(
                loss=f"{history.epoch_losses[-1]:.1e}", accuracy=f"{history.accuracies[-1]:.1%}"
            )
    return history


def size_of(tree: Any) -> int:
    """The bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def epoch_batches(rng: np.random.Generator, size: int, batch_size: int) -> list[np.ndarray]:
    """The indices of each full batch of one pass in random order."""
    return np.split(rng.permutation(size)[: size // batch_size * batch_size], size // batch_size)


def runs(args: argparse.Namespace, steps: int) -> dict[str, Run]:
    """RMSprop three times, and three others of Optax's, at learning rates chosen by hand.

    rprop sets its own step sizes, so it has neither schedule nor clipping.
    """

    def clipped(make: Callable[..., Any], learning_rate: float, **options: Any) -> Any:
        schedule = optax.cosine_decay_schedule(learning_rate, steps)
        return optax.chain(optax.clip_by_global_norm(1.0), make(schedule, **options))

    def with_flags(make: Callable[..., Any], **options: Any) -> Any:
        return clipped(make, args.learning_rate, decay=args.decay, eps=EPS, **options)

    one_byte = with_flags(rmsprop, accumulator_dtype="float8_e5m2")
    return {
        FLOAT32: Run(with_flags(rmsprop)),
        OPTAX: Run(with_flags(optax.rmsprop), jnp.bfloat16),
        OURS: Run(one_byte, jnp.bfloat16, apply_updates),
        "SGD": Run(clipped(optax.sgd, 0.3)),
        "Adagrad": Run(clipped(optax.adagrad, 0.1)),
        "rprop": Run(optax.rprop(1e-2)),
    }


def draw(histories: dict[str, History], path: Path) -> None:
    """RMSprop in float32 and in bfloat16; beside it, four optimizers in float32."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 4.2), width_ratios=(3, 2), layout="constrained"
    )
    draw_losses(left, {name: histories[name] for name in (OPTAX, OURS, FLOAT32)}, memory=True)
    optax_end, our_end, end = (histories[name].epoch_losses[-1] for name in (OPTAX, OURS, FLOAT32))
    left.set_title(
        f"In bfloat16 Optax ends at {optax_end / end:.1f} times float32's loss, "
        f"ours at {our_end / end:.1f}",
        loc="left",
    )
    left.set_ylabel("training loss, mean of the epoch")
    draw_losses(right, {name: x for name, x in histories.items() if name not in (OPTAX, OURS)})
    right.set_title("Four optimizers in float32", loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_losses(axes: Any, histories: dict[str, History], *, memory: bool = False) -> None:
    """Lines with their names at the right, as high as they end or below the one before."""
    for name, history in histories.items():
        axes.plot(range(1, len(history.accuracies) + 1), history.epoch_losses, **STYLES[name])
    losses = [loss for history in histories.values() for loss in history.epoch_losses]
    axes.set(xlabel="epoch", yscale="log", ylim=(min(losses) / 5, max(losses) * 2))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    to_height = (axes.transScale + axes.transLimits).transform
    height, spacing = np.inf, 0.13 if memory else 0.07
    for name, history in sorted(histories.items(), key=lambda item: -item[1].epoch_losses[-1]):
        label = f"{name}\n{history.memory}" if memory else name.removesuffix(", float32")
        height = min(to_height((1, history.epoch_losses[-1]))[1] - 0.03, height - spacing)
        color = STYLES[name]["color"]
        axes.text(1.02, height, label, transform=axes.transAxes, color=color, va="bottom")


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "quickstart.png")
    parser.add_argument(
        "--epochs", type=flags.whole_number, default=30, help="passes over the data"
    )
    parser.add_argument(
        "--batch-size", type=flags.whole_number, default=32, help="digits a step, at most 1198"
    )
    parser.add_argument(
        "--learning-rate",
        type=flags.number_below(100),
        default=2e-3,
        help="RMSprop's at the start; a cosine takes it to zero",
    )
    parser.add_argument(
        "--decay",
        type=flags.number_below(1),
        default=0.9,
        help="of RMSprop's average, >= 0 and < 1",
    )
    parser.add_argument(
        "--diagnose",
        type=flags.whole_number,
        metavar="N",
        help="print what RMSprop's state says every N steps, and draw its step sizes",
    )
    args = parser.parse_args()
    if args.batch_size > 1198:
        parser.error(f"argument --batch-size: must be at most 1198, got {args.batch_size}")
    return args


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    data = load(args.seed)
    steps = args.epochs * (len(data[0].labels) // args.batch_size)
    watch = None
    if args.diagnose is not None:
        watch = Watch(args.diagnose, optax.cosine_decay_schedule(args.learning_rate, steps))
    histories = {
        name: train(run, data, args, name, watch if name == FLOAT32 else None)
        for name, run in runs(args, steps).items()
    }
    draw(histories, args.output)
    if watch is not None and watch.steps:
        path = args.output.with_stem(f"{args.output.stem}_step_sizes")
        watch.draw(path)
        print(f"RMSprop's step sizes are drawn in {path}")
    for name, history in histories.items():
        print(
            f"{name:19} loss {history.epoch_losses[-1]:.2e}, "
            f"test accuracy {history.accuracies[-1]:.1%}, {history.memory} per parameter"
        )
    print(
        f"RMSprop: test accuracy {histories[FLOAT32].accuracies[-1]:.1%} on "
        f"{len(data[1].labels)} held-out digits; {jax.devices()[0].device_kind}, "
        f"{time.perf_counter() - began:.0f} s for all six; picture in {args.output}"
    )


if __name__ == "__main__":
    main()
