"""Resumes a torch run in JAX from its checkpoint, and shows that it continues as in torch.

    python resume_from_torch.py run.pt

The checkpoint is that of train_in_torch.py; without a path, it is made first. Torch continues
from it by itself, and so does Flax's NNX, with torch's parameters, running statistics and optimizer
state, on the same batches. For comparison, NNX continues a second time with a new optimizer state.
To resume your own run, change the two networks. Needs torch.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import flags
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
import train_in_torch
from flax import nnx
from quickstart import Digits, load
from tqdm import tqdm

from rmsprop_jax import interop


class Network(nnx.Module):
    """The network of train_in_torch.py in Flax, with the same names."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(16, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), use_bias=False, rngs=rngs)
        self.second_norm = nnx.BatchNorm(32, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 56, rngs=rngs)
        self.output = nnx.Linear(56, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of shape (n, 10)."""
        x = nnx.relu(self.first_norm(self.first(images)))
        x = nnx.relu(self.second_norm(self.second(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.output(x)


class Losses(NamedTuple):
    """The loss of each step: before the checkpoint, and after it in torch and in JAX."""

    before: list[float]
    torch: list[float]
    jax: list[float]
    without_state: list[float]


def restore(path: Path) -> tuple[Network, interop.Restored]:
    """Flax's network with torch's parameters and running statistics, and the run's optimizer."""
    model = Network(nnx.Rngs(0))
    # From torch's names and axes to Flax's; Flax flattens images in another order.
    mapping = interop.pytorch.mapping_of(train_in_torch.TorchNetwork())
    restored = interop.pytorch.load(path, nnx.state(model, nnx.Param), mapping)
    nnx.update(model, restored.params)
    statistics = nnx.state(model, nnx.BatchStat)
    nnx.replace_by_pure_dict(statistics, restored.buffers)
    nnx.update(model, statistics)
    return model, restored


def train(model: Network, optimizer: nnx.Optimizer, data: Digits, batches: Any) -> list[float]:
    """Trains the model in place, and returns the loss of each step."""

    @nnx.jit
    def step(model: Network, optimizer: nnx.Optimizer, batch: Digits) -> jax.Array:
        def loss_of(model: Network) -> jax.Array:
            losses = optax.softmax_cross_entropy_with_integer_labels
            return losses(model(batch.images), batch.labels).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = []
    for chosen in tqdm(batches, desc="JAX  ", unit="step"):
        batch = Digits(data.images[chosen], data.labels[chosen])
        losses.append(float(step(model, optimizer, batch)))
    return losses


def continue_in_jax(path: Path, data: Digits, batches: Any) -> tuple[Network, list[float]]:
    """Continues the run from its checkpoint."""
    model, restored = restore(path)
    # nnx.Optimizer gets its state from `init`, which here returns the restored one.
    optimizer = restored.optimizer._replace(init=lambda _: restored.state)
    return model, train(model, nnx.Optimizer(model, optimizer, wrt=nnx.Param), data, batches)


def continue_without_state(path: Path, data: Digits, batches: Any) -> list[float]:
    """Continues with torch's parameters, and a new optimizer state."""
    model, restored = restore(path)
    return train(model, nnx.Optimizer(model, restored.optimizer, wrt=nnx.Param), data, batches)


def continue_in_torch(path: Path, args: argparse.Namespace, batches: Any) -> list[float]:
    """Continues in torch, for comparison."""
    checkpoint = torch.load(path, weights_only=True)
    model = train_in_torch.TorchNetwork()
    model.load_state_dict(checkpoint["model_state_dict"])
    optimizer = train_in_torch.optimizer_of(model)
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    return train_in_torch.train(
        model, optimizer, train_in_torch.training_digits(args.seed), batches
    )


def run(path: Path, args: argparse.Namespace) -> tuple[Losses, float]:
    """All runs from the checkpoint, and the held-out accuracy of JAX's."""
    data, held_out = load(args.seed)
    rng = np.random.default_rng(args.seed + 1)
    batches = rng.integers(len(data.labels), size=(args.steps, train_in_torch.BATCH_SIZE))
    model, losses = continue_in_jax(path, data, batches)
    model.eval()
    accuracy = float((model(held_out.images).argmax(1) == held_out.labels).mean())
    checkpoint = torch.load(path, weights_only=True)
    return (
        Losses(
            checkpoint.get("losses", []),
            continue_in_torch(path, args, batches),
            losses,
            continue_without_state(path, data, batches),
        ),
        accuracy,
    )


def draw(losses: Losses, path: Path) -> None:
    """The losses of all runs, and their differences from torch's."""
    first = len(losses.before) + 1
    steps = np.arange(first, first + len(losses.jax))
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    torchs = losses.before + losses.torch
    upper.plot(range(1, 1 + len(torchs)), torchs, color="#56B4E9", linewidth=5, label="torch")
    upper.plot(steps, losses.jax, color="#000000", linewidth=1, label="JAX, resumed")
    without_state = {"color": "#D55E00", "linestyle": "--", "linewidth": 1}
    upper.plot(steps, losses.without_state, label="JAX, without the state", **without_state)
    upper.set(ylabel="cross-entropy of the batch", yscale="log")
    upper.set_title("A run that torch began, resumed in JAX on the same batches")
    lower.plot(steps, differences(losses.jax, losses), color="#000000", linewidth=1)
    lower.plot(steps, differences(losses.without_state, losses), **without_state)
    lower.set(xlabel="step", ylabel="relative difference", yscale="log")
    for axes in (upper, lower):
        axes.axvline(first - 0.5, color="#555555", linestyle=":", label="checkpoint")
        axes.grid(alpha=0.3)
    upper.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def differences(resumed: list[float], losses: Losses) -> np.ndarray:
    """How far each resumed step is from torch's, relative to its loss."""
    expected = np.array(losses.torch)
    return abs(np.array(resumed) - expected) / expected


def checkpoint_file(text: str) -> Path:
    """An existing file, or argparse's error."""
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(
            f"must be a checkpoint of train_in_torch.py, got {text!r}, which is not a file"
        )
    return path


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "resume_from_torch.png")
    parser.add_argument(
        "path", type=checkpoint_file, nargs="?", help="the checkpoint; without it, one is made"
    )
    parser.add_argument(
        "--steps", type=flags.whole_number, default=100, help="steps to take from the checkpoint"
    )
    return parser.parse_args()


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or Path(folder) / "run.pt"
        if args.path is None:
            train_in_torch.run(path, args.steps, args.seed)
        losses, accuracy = run(path, args)
    draw(losses, args.output)
    print(
        f"resume_from_torch: after {args.steps} resumed steps: loss {losses.jax[-1]:.5f} in JAX, "
        f"{losses.torch[-1]:.5f} in torch; largest relative difference of a step "
        f"{differences(losses.jax, losses).max():.1e}, without the state "
        f"{differences(losses.without_state, losses).max():.2f}; held-out accuracy "
        f"{accuracy:.1%}; {jax.devices()[0].device_kind}, {time.perf_counter() - began:.0f} s; "
        f"picture in {args.output}"
    )


if __name__ == "__main__":
    main()
