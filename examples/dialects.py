"""Trains the network of quickstart.py with each framework's RMSprop, at its own defaults.

Once with the learning rate of its source; TensorFlow, fastai and the lecture name none, and
get Keras's. And once with the same rate for all. What then differs is the formula: where
epsilon is added, how long the average remembers, and what it starts from.
"""

import argparse
import inspect
import time
from pathlib import Path

import flags
import jax
import matplotlib.pyplot as plt
import numpy as np
from quickstart import History, Run, load, train

from rmsprop_jax import dialects, rmsprop

# For dialects whose source names no learning rate, and for all of them at the same one.
SAME_RATE = 1e-3
OPTIMIZERS = dialects.DIALECTS | {"optax": rmsprop}
RATES = {
    name: SAME_RATE if rate is inspect.Parameter.empty else rate
    for name, rate in (
        (name, next(iter(inspect.signature(make).parameters.values())).default)
        for name, make in OPTIMIZERS.items()
    )
}
# Okabe and Ito's colours, one for each of the two learning rates.
STYLES = [{"color": "#0072B2", "linestyle": "-"}, {"color": "#D55E00", "linestyle": "--"}]
SAME = "the same learning rate, 0.001"
WINDOW = 10


def draw(columns: dict[str, dict[str, History]], path: Path) -> None:
    """Training loss by step: a panel for each dialect, with all others in grey behind it."""
    figure, grid = plt.subplots(
        3, 4, figsize=(12, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    panels = dict(zip(RATES, np.ravel(grid), strict=False))
    for (title, histories), style in zip(columns.items(), STYLES, strict=True):
        for name, history in histories.items():
            used = len(history.losses) // WINDOW * WINDOW
            mean = np.reshape(history.losses[:used], (-1, WINDOW)).mean(axis=1)
            steps = np.arange(1, len(mean) + 1) * WINDOW
            for other, axes in panels.items():
                if other != name:
                    axes.plot(steps, mean, color="0.85", linewidth=0.8, zorder=1)
            panels[name].plot(steps, mean, label=title, zorder=2, **style)
    for name, axes in panels.items():
        axes.set(title=f"{name}, {RATES[name]:g}", yscale="log")
        axes.grid(alpha=0.3)
    for axes in np.ravel(grid)[len(panels) :]:
        axes.axis("off")
    figure.supxlabel("step")
    figure.supylabel(f"training loss, cross-entropy, mean of {WINDOW} steps")
    handles, labels = panels["keras"].get_legend_handles_labels()
    np.ravel(grid)[-1].legend(handles, labels, loc="center", frameon=False)
    figure.suptitle("One network, one task, the same batches: RMSprop as each framework has it")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "dialects.png")
    parser.add_argument(
        "--epochs", type=flags.whole_number, default=10, help="passes over the data"
    )
    parser.set_defaults(batch_size=32)
    return parser.parse_args()


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    data = load(args.seed)
    columns = {}
    for title, rates in {
        "its own learning rate": RATES,
        SAME: dict.fromkeys(RATES, SAME_RATE),
    }.items():
        columns[title] = {
            name: train(Run(OPTIMIZERS[name](rate)), data, args, name)
            for name, rate in rates.items()
        }
        for name, history in columns[title].items():
            loss = np.mean(history.losses[-WINDOW:])
            print(f"{title}: {name:17} {rates[name]:<8g} loss {loss:.4f}")
    draw(columns, args.output)
    ends = {name: np.mean(history.losses[-WINDOW:]) for name, history in columns[SAME].items()}
    print(
        f"dialects: at {SAME}: Keras {ends['keras']:.4f}, Optax {ends['optax']:.4f}, "
        f"TensorFlow 1 {ends['tensorflow_v1']:.4f}; "
        f"{jax.devices()[0].device_kind}, {time.perf_counter() - began:.0f} s; "
        f"picture in {args.output}"
    )


if __name__ == "__main__":
    main()
