"""Resumes a torch run in JAX, and shows that it continues as torch's own run does.

A small convolutional network learns scikit-learn's handwritten digits with torch's
RMSprop, centred and with momentum, and saves a checkpoint half-way. From there torch
continues by itself, and JAX continues from the file, on the same batches. For comparison
JAX continues a second time with the parameters alone, and a new state. Needs torch.
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
from flax import nnx
from quickstart import Digits, Network, load
from tqdm import tqdm

from rmsprop_jax import interop

BATCH_SIZE = 32


class TorchNetwork(torch.nn.Module):
    """The network of quickstart.py, in torch: images have their channels first."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 16, 3, padding="same")
        self.second = torch.nn.Conv2d(16, 32, 3, padding="same")
        self.hidden = torch.nn.Linear(32 * 4 * 4, 56)
        self.output = torch.nn.Linear(56, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n, 10)."""
        x = torch.relu(self.first(images))
        x = torch.relu(self.second(x))
        x = torch.nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.output(x)


class Losses(NamedTuple):
    """The loss of each step: torch's whole run, and its second half in JAX."""

    torch: list[float]
    jax: list[float]
    without_state: list[float]


def train_in_torch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Digits, batches: np.ndarray
) -> list[float]:
    """Trains the model in place; the loss of each step."""
    images = torch.from_numpy(np.array(data.images).transpose(0, 3, 1, 2))
    labels = torch.from_numpy(np.array(data.labels)).long()
    losses = []
    for chosen in tqdm(batches, desc="torch", unit="step"):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def restore(file: Path, model: torch.nn.Module) -> tuple[nnx.GraphDef, interop.Restored]:
    """Flax's network, and torch's run restored for it."""
    graph, variables = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    # From torch's names and axes to Flax's. The two flatten images in different orders.
    mapping = interop.pytorch.mapping_of(model)
    mapping["hidden.weight"] = interop.Leaf(
        "hidden/kernel", transpose=(2, 3, 1, 0), reshape=(56, 32, 4, 4)
    )
    return graph, interop.pytorch.load(file, nnx.to_pure_dict(variables), mapping)


def train_in_jax(
    graph: nnx.GraphDef, restored: interop.Restored, data: Digits, batches: np.ndarray
) -> list[float]:
    """Continues the restored run; the loss of each step."""

    def loss_of(params: dict, batch: Digits) -> jax.Array:
        logits = nnx.merge(graph, nnx.State(params))(batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    @jax.jit
    def step(
        params: dict, state: optax.OptState, batch: Digits
    ) -> tuple[Any, optax.OptState, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = restored.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = restored.params, restored.state, []
    for chosen in tqdm(batches, desc="JAX  ", unit="step"):
        params, state, loss = step(params, state, Digits(data.images[chosen], data.labels[chosen]))
        losses.append(float(loss))
    return losses


def run(args: argparse.Namespace) -> Losses:
    """Both runs: torch's from the start, JAX's from the middle."""
    data, _ = load(args.seed)
    rng = np.random.default_rng(args.seed)
    batches = rng.integers(len(data.labels), size=(2 * args.steps, BATCH_SIZE))
    first, second = np.split(batches, 2)

    torch.manual_seed(args.seed)
    model = TorchNetwork()
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=3e-4, alpha=0.95, eps=1e-2, momentum=0.9, centered=True
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.pt"
        losses = train_in_torch(model, optimizer, data, first)
        checkpoint = {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
        }
        torch.save(checkpoint, file)
        graph, restored = restore(file, model)
    print(f"resumed at step {restored.step} with {restored.hyperparameters[0]}")
    with_new_state = restored._replace(state=restored.optimizer.init(restored.params))
    return Losses(
        losses + train_in_torch(model, optimizer, data, second),
        train_in_jax(graph, restored, data, second),
        train_in_jax(graph, with_new_state, data, second),
    )


def draw(losses: Losses, path: Path) -> None:
    """Both losses over each other, and how far they are apart."""
    half = len(losses.jax)
    steps = np.arange(1, 2 * half + 1)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    upper.plot(steps, losses.torch, color="#56B4E9", linewidth=5, label="torch")
    upper.plot(steps[half:], losses.jax, color="#000000", linewidth=1, label="JAX, resumed")
    without_state = {"color": "#D55E00", "linestyle": "--", "linewidth": 1}
    upper.plot(steps[half:], losses.without_state, label="JAX, without the state", **without_state)
    upper.set(ylabel="cross-entropy of the batch", yscale="log")
    upper.set_title("A run that torch began, resumed in JAX on the same batches")
    lower.plot(steps[half:], differences(losses.jax, losses), color="#000000", linewidth=1)
    lower.plot(steps[half:], differences(losses.without_state, losses), **without_state)
    lower.set(xlabel="step", ylabel="relative difference", yscale="log")
    for axes in (upper, lower):
        axes.axvline(half + 0.5, color="#555555", linestyle=":", label="checkpoint")
        axes.grid(alpha=0.3)
    upper.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def differences(resumed: list[float], losses: Losses) -> np.ndarray:
    """How far each resumed step is from torch's, relative to its loss."""
    expected = np.array(losses.torch[-len(resumed) :])
    return abs(np.array(resumed) - expected) / expected


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "resume_from_torch.png")
    parser.add_argument(
        "--steps", type=flags.whole_number, default=100, help="before the checkpoint, and after it"
    )
    return parser.parse_args()


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    losses = run(args)
    draw(losses, args.output)
    print(
        f"resume_from_torch: after {args.steps} resumed steps: loss {losses.jax[-1]:.5f} in JAX, "
        f"{losses.torch[-1]:.5f} in torch; largest relative difference of a step "
        f"{differences(losses.jax, losses).max():.1e}, without the state "
        f"{differences(losses.without_state, losses).max():.2f}; "
        f"{jax.devices()[0].device_kind}, {time.perf_counter() - began:.0f} s; "
        f"picture in {args.output}"
    )


if __name__ == "__main__":
    main()
