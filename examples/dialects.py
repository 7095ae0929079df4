"""Trains the network of quickstart.py with each framework's RMSprop, at its own defaults.

Left, each has the learning rate that its source has. TensorFlow and the lecture name
none; they get Keras's. Right, all have the same, and what is left is the formula:
where epsilon stands, how long the average remembers, and what it starts from.
"""

import argparse
import inspect
import time
from itertools import cycle
from pathlib import Path

import flags
import jax
import matplotlib.pyplot as plt
import numpy as np
from quickstart import History, load, train

from rmsprop_jax import dialects, rmsprop

# Each at the learning rate of its source; without one, at this.
SAME_RATE = 1e-3
OPTIMIZERS = dialects.DIALECTS | {"optax": rmsprop}
RATES = {
    name: SAME_RATE if rate is inspect.Parameter.empty else rate
    for name, rate in (
        (name, next(iter(inspect.signature(make).parameters.values())).default)
        for name, make in OPTIMIZERS.items()
    )
}
# Okabe and Ito's palette, and a line style each: readable without colour too.
STYLES = [
    {"color": "#D55E00", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": (0, (1, 3))},
    {"color": "#E69F00", "linestyle": "--"},
    {"color": "#000000", "linestyle": ":"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#CC79A7", "linestyle": (0, (8, 2))},
    {"color": "#56B4E9", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
]
SAME = "the same learning rate, 0.001"
WINDOW = 10


def draw(columns: dict[str, dict[str, History]], path: Path) -> None:
    """Training loss by step, a panel for each choice of learning rates."""
    figure, panels = plt.subplots(
        1, len(columns), figsize=(11, 4.5), sharey=True, layout="constrained"
    )
    for axes, (title, histories) in zip(panels, columns.items(), strict=True):
        for (name, history), style in zip(histories.items(), cycle(STYLES)):
            used = len(history.losses) // WINDOW * WINDOW
            mean = np.reshape(history.losses[:used], (-1, WINDOW)).mean(axis=1)
            axes.plot(np.arange(1, len(mean) + 1) * WINDOW, mean, label=name, **style)
        axes.set(xlabel="step", title=title, yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"training loss, cross-entropy, mean of {WINDOW} steps")
    panels[1].legend(loc="upper right", ncols=2)
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
            name: train(OPTIMIZERS[name](rate), data, args, name) for name, rate in rates.items()
        }
        for name, history in columns[title].items():
            loss = np.mean(history.losses[-WINDOW:])
            print(f"{title}: {name:13} {rates[name]:<8g} loss {loss:.4f}")
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
