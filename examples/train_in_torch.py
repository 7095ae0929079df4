"""Trains a network in torch and saves the usual checkpoint. Nothing here knows about JAX.

    python train_in_torch.py run.pt
    python resume_from_torch.py run.pt

A small convolutional network with batch normalization learns scikit-learn's handwritten digits
with torch's RMSprop, centred and with momentum. Needs torch.
"""

import argparse
from pathlib import Path
from typing import Any

import flags
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

BATCH_SIZE = 32


class TorchNetwork(torch.nn.Module):
    """Two convolutions, each normalized, one pooling, two dense layers."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 16, 3, padding="same", bias=False)
        self.first_norm = torch.nn.BatchNorm2d(16)
        self.second = torch.nn.Conv2d(16, 32, 3, padding="same", bias=False)
        self.second_norm = torch.nn.BatchNorm2d(32)
        self.hidden = torch.nn.Linear(32 * 4 * 4, 56)
        self.output = torch.nn.Linear(56, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n, 10)."""
        x = torch.relu(self.first_norm(self.first(images)))
        x = torch.relu(self.second_norm(self.second(x)))
        x = torch.nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.output(x)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """RMSprop, centred and with momentum."""
    return torch.optim.RMSprop(
        model.parameters(), lr=3e-4, alpha=0.95, eps=1e-2, momentum=0.9, centered=True
    )


def training_digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two thirds of the digits: images of shape (n, 1, 8, 8), and labels."""
    data: Any = load_digits()
    images, _, labels, _ = train_test_split(
        (data.images[:, None] / 16).astype(np.float32),
        data.target,
        test_size=1 / 3,
        stratify=data.target,
        random_state=seed,
    )
    return torch.from_numpy(images), torch.from_numpy(labels)


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: tuple[torch.Tensor, torch.Tensor],
    batches: np.ndarray,
) -> list[float]:
    """Trains the model in place, and returns the loss of each step."""
    images, labels = digits
    model.train()
    losses = []
    for chosen in tqdm(batches, desc="torch", unit="step"):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run(path: Path, steps: int, seed: int) -> None:
    """Trains from the start, and saves."""
    torch.manual_seed(seed)
    digits = training_digits(seed)
    model = TorchNetwork()
    optimizer = optimizer_of(model)
    batches = np.random.default_rng(seed).integers(len(digits[1]), size=(steps, BATCH_SIZE))
    losses = train(model, optimizer, digits, batches)
    torch.save(
        {
            "epoch": 1,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "losses": losses,
        },
        path,
    )


def main() -> None:
    """Reads the flags, trains and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="where to save the checkpoint, such as run.pt")
    parser.add_argument("--steps", type=flags.whole_number, default=100)
    parser.add_argument("--seed", type=flags.seed, default=0)
    args = parser.parse_args()
    run(args.path, args.steps, args.seed)
    print(f"train_in_torch: {args.steps} steps, checkpoint in {args.path}")


if __name__ == "__main__":
    main()
