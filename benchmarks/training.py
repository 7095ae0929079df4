"""Two small networks trained with averages in each format: does low precision train like float32?

The networks and their data are those of `tests/support/training.py`, with five seeds each. Prints
the final training loss, and draws it by epoch. Stochastic rounding is compared with rounding to
nearest.
"""

import argparse
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.training import DECAYS, NEAREST, SEEDS, STORAGES, TASKS, train


def draw(results: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One panel per task and decay: the mean loss over seeds by epoch, and float32's range."""
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
            # This loss falls by powers of ten.
            panel.set_yscale("log" if task == "digits" else "linear")
            panel.set(title=f"{task}, decay {decay}", xlabel="epoch")
        row[0].set_ylabel("training loss (nats)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# Colours that colour-blind readers can tell apart; rounding to nearest is dashed.
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
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which networks"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="networks in each way")
    parser.add_argument("--output", type=Path, default=Path("training.png"), help="the picture")
    args = parser.parse_args()
    if min(*args.epochs, args.seeds) < 1:
        parser.error("--epochs and --seeds must be at least 1")

    results: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=len(args.tasks) * len(STORAGES | NEAREST), unit="run") as progress:
        for (name, make), epochs in zip(TASKS.items(), args.epochs, strict=True):
            if name not in args.tasks:
                continue
            task, results[name] = make(), {}
            for storage_name, storage in (STORAGES | NEAREST).items():
                results[name][storage_name] = train(task, storage, epochs, args.seeds)
                progress.update()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; epochs {args.epochs}")
    print(f"training loss at the end, mean of {args.seeds} seeds; of float32 also least and most\n")
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
