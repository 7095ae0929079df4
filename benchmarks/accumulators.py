"""What a low-precision average costs and saves: ours, Optax's, torch's and bitsandbytes'.

For each: the error of sqrt(v) against float64 after many steps, bytes of state and
bytes that a compiled step moves a parameter, and the training loss of a small network.
torch and bitsandbytes are left out where they are not installed (`pip install
torch==2.13.0`, then `pip install bitsandbytes --no-deps`), bytes moved without libtpu.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from others import bitsandbytes, torch, versions
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import reference, tpu, training

from rmsprop_jax import second_moment

WIDTH = 4096
DECAYS = training.DECAYS
ZERO = 0.25  # where the picture's logarithmic axis has zero
LEGEND = """
state, moved: bytes per parameter, kept, and read and written by a step compiled for TPU v5e
v, sqrt(v), decay: bias of v and std of sqrt(v) over float64's, gradients within a factor of 400
log-normal: percentiles of sqrt(v) over float64's, largest decay, sizes of gradients e**(2 N(0, 1))
loss, decay: training loss of the digits network at the end, mean of the seeds
"""


class Method(NamedTuple):
    """One implementation with one storage.

    Attributes:
      average: From gradients (steps, WIDTH) and a decay to the last average v.
      storage: How `training` trains with it; None if it is torch's.
      state_bytes: Of state, a parameter.
      dtype: Of parameters and gradients.
      torch_optimizer: Makes one of torch's.
    """

    average: Callable[[np.ndarray, float], np.ndarray]
    storage: training.Storage | None = None
    state_bytes: float = 4
    dtype: Any = jnp.float32
    torch_optimizer: Any = None


def jax_method(storage: training.Storage) -> Method:
    """Ours or Optax's."""

    def average(gradients: np.ndarray, decay: float) -> np.ndarray:
        optimizer = storage.optimizer(1e-3, decay)
        g = jnp.asarray(gradients, storage.dtype)

        def step(state: Any, g: jax.Array) -> tuple[Any, None]:
            return optimizer.update(g, state)[1], None

        state, _ = jax.jit(lambda g: jax.lax.scan(step, optimizer.init(g[0]), g))(g)
        return np.asarray(second_moment(state), np.float64)

    params = jax.ShapeDtypeStruct((2**20,), storage.dtype)
    state = jax.eval_shape(storage.optimizer(1e-3, 0.9).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return Method(average, storage, size / 2**20, storage.dtype)


def torch_method(make: Callable[..., Any], read: Callable[[Any], Any]) -> Method:
    """A torch optimizer; ``read`` makes v of what it keeps of a parameter."""

    def run(gradients: np.ndarray, decay: float) -> Any:
        assert torch is not None
        w = torch.nn.Parameter(torch.zeros(gradients.shape[1]))
        optimizer = make([w], lr=1e-3, alpha=decay, eps=1e-8)
        for g in gradients:
            w.grad = torch.tensor(g)
            optimizer.step()
        return optimizer.state[w]

    kept = run(np.ones((1, 2**20), np.float32), 0.9)
    # bitsandbytes keeps a table of its codes, one for all parameters.
    arrays = [x for k, x in kept.items() if hasattr(x, "numel") and not k.startswith("qmap")]
    size = sum(x.numel() * x.element_size() for x in arrays)
    return Method(
        lambda g, decay: read(run(g, decay)).double().numpy(),
        state_bytes=size / 2**20,
        torch_optimizer=make,
    )


def methods() -> dict[str, Method]:
    """All that can be run here, by name."""
    found = {
        "ours, float32": jax_method(training.STORAGES["float32"]),
        "ours, bfloat16": jax_method(training.STORAGES["bfloat16"]),
        "ours, one byte": jax_method(training.STORAGES["one byte"]),
        "ours, one byte, all bfloat16": jax_method(training.STORAGES["all bfloat16, one byte"]),
        "Optax, float32": jax_method(training.Storage(optax.rmsprop)),
        "Optax, all bfloat16": jax_method(training.NEAREST["all bfloat16, to nearest"]),
    }
    if torch is not None:
        found["torch, float32"] = torch_method(torch.optim.RMSprop, lambda s: s["square_avg"])
    if torch is not None and bitsandbytes is not None:
        eight_bits = bitsandbytes.optim.rmsprop.RMSprop8bit

        def make(params: Any, **options: Any) -> Any:
            return eight_bits(params, min_8bit_size=1, **options)

        def read(kept: Any) -> Any:
            scales = kept["absmax1"].repeat_interleave(256)
            return kept["qmap1"][kept["state1"].long()] * scales[: kept["state1"].numel()]

        found["bitsandbytes, 8 bits"] = torch_method(make, read)
    return found


def gradients(kind: str, decay: float) -> np.ndarray:
    """Gradients (steps, WIDTH), of another size in each element."""
    rng = np.random.default_rng(0)
    if kind == "factor of 400":
        size = np.geomspace(1e-3, 0.4, WIDTH)
    else:
        size = 1e-2 * np.exp(2 * rng.standard_normal(WIDTH))
    g = size * rng.standard_normal((round(3 / (1 - decay)), WIDTH))
    return g.astype(np.float32)


def errors(method: Method, kind: str, decay: float) -> np.ndarray:
    """sqrt(v) over float64's in each element."""
    g = gradients(kind, decay)
    seen = np.asarray(jnp.asarray(g, method.dtype), np.float64)
    return np.sqrt(method.average(g, decay) / reference.mean_square(seen, decay))


def bytes_moved(method: Method) -> float | None:
    """A step's on TPU v5e, a parameter."""
    if method.storage is None or not tpu.AVAILABLE:
        return None
    optimizer = method.storage.optimizer(1e-3, 0.9)
    apply = method.storage.apply
    compiled = tpu.compile_step("v5e:2x4", (4096, 4096), optimizer, method.dtype, apply)
    return tpu.bytes_accessed(compiled) / 4096**2


def train_in_torch(method: Method, decay: float, epochs: int, seeds: int) -> np.ndarray:
    """The losses of `training.digits` at the end, one for each seed."""
    assert torch is not None
    images, labels = training.digits().examples
    images, labels = torch.tensor(np.asarray(images)), torch.tensor(np.asarray(labels)).long()
    losses = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        hidden, output = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
        for layer in (hidden, output):
            torch.nn.init.normal_(layer.weight, std=1 / 8)
            torch.nn.init.zeros_(layer.bias)
        model = torch.nn.Sequential(hidden, torch.nn.Tanh(), output)
        optimizer = method.torch_optimizer(model.parameters(), lr=1e-3, alpha=decay, eps=1e-8)
        loss = torch.nn.CrossEntropyLoss()
        for _ in range(epochs):
            order = torch.randperm(len(images))[: len(images) // training.BATCH * training.BATCH]
            for batch in order.split(training.BATCH):
                optimizer.zero_grad()
                loss(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        losses.append(loss(model(images), labels).item())
    return np.array(losses)


def final_losses(method: Method, epochs: int, seeds: int, decays: list[float]) -> np.ndarray:
    """Training losses of the digits network at the end, (decays, seeds)."""
    if method.storage is not None:
        return training.train(training.digits(), method.storage, epochs, seeds, decays)[..., -1]
    return np.stack([train_in_torch(method, decay, epochs, seeds) for decay in decays])


def draw(
    ratios: dict[str, np.ndarray],
    losses: dict[str, np.ndarray],
    sizes: dict[str, float],
    decays: list[float],
    path: Path,
) -> None:
    """A row for each method, with its bytes of state: its errors on the left, its losses right."""
    names = sorted(sizes, key=lambda name: -round(sizes[name]))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained"
    )
    for y, name in enumerate(names):
        draw_errors(left, ratios[name], y, color_of(name))
        end = {"transform": left.get_yaxis_transform(), "ha": "right", "va": "center"}
        left.text(-0.03, y, f"{sizes[name]:.2f}", color=color_of(name), **end)
        left.text(-0.16, y, name, color=color_of(name), **end)
    left.text(-0.03, 1.03, "bytes of state\nper parameter", transform=left.transAxes, ha="right")
    left.set_title(f"root of v over float64's, decay {max(decays)}", loc="left")
    left.set(xscale="log", xlim=(ZERO, 40), xlabel="1 is exact")
    ticks = [0.5, 1, 2, 5, 10, 20]
    left.set_xticks([ZERO, *ticks], ["0", *map(str, ticks)])
    left.minorticks_off()
    left.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    left.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6))

    draw_losses(right, [losses[name] for name in names], decays)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0, labelleft=False)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def color_of(name: str) -> str:
    """Ours in one colour, all others in another."""
    return "#d55e00" if name.startswith("ours") else "0.25"


def draw_errors(axes: Any, ratio: np.ndarray, y: float, color: str) -> None:
    """Nine in ten elements as a line, half of them as a bar, the median as a dot."""
    p5, p25, p50, p75, p95 = np.maximum(np.percentile(ratio, [5, 25, 50, 75, 95]), ZERO)
    axes.plot([p5, p95], [y, y], color=color, linewidth=1.5)
    axes.plot([p25, p75], [y, y], color=color, linewidth=8, solid_capstyle="butt", alpha=0.5)
    axes.plot(p50, y, "o", color=color, markersize=6)
    if zeros := np.mean(ratio == 0):
        axes.text(ZERO * 1.05, y - 0.15, f"{zeros:.0%} are zero", color=color, fontsize="small")


def draw_losses(axes: Any, losses: list[np.ndarray], decays: list[float]) -> None:
    """A dot for each seed, the decays in colours of their own."""
    styles = (("#0072b2", "o"), ("#009e73", "^"), ("#a0458a", "s"))
    for i, (decay, (color, marker)) in enumerate(zip(decays, styles, strict=False)):
        for y, ends in enumerate(losses):
            heights = np.full(len(ends[i]), y + 0.22 * (i - 1))
            label = f"decay {decay}" if y == 0 else None
            axes.plot(ends[i], heights, marker, color=color, markersize=4, alpha=0.8, label=label)
    axes.set_title("training loss at the end", loc="left")
    axes.set(xscale="log", xlabel=f"cross-entropy of a small network, {losses[0].shape[1]} seeds")
    axes.legend(loc="lower right", framealpha=1, edgecolor="none")


def main() -> None:
    """Prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=150, help="passes over the digits")
    parser.add_argument(
        "--decays", type=float, nargs="+", choices=DECAYS, default=list(DECAYS), help="of averages"
    )
    parser.add_argument("--seeds", type=int, default=training.SEEDS, help="networks of each")
    parser.add_argument("--output", type=Path, default=Path("accumulators.png"), help="the picture")
    args = parser.parse_args()
    if min(args.epochs, args.seeds) < 1:
        parser.error("--epochs and --seeds must be at least 1")

    found = methods()
    rows, ratios, losses = [], {}, {}
    for name, method in tqdm(found.items(), unit="method"):
        uniform = [errors(method, "factor of 400", decay) for decay in args.decays]
        ratios[name] = errors(method, "log-normal", max(args.decays))
        losses[name] = final_losses(method, args.epochs, args.seeds, args.decays)
        moved = bytes_moved(method)
        rows.append(
            [
                name,
                f"{method.state_bytes:.2f}",
                "-" if moved is None else f"{moved:.2f}",
                *(
                    f"{100 * ((ratio**2).mean() - 1):+.1f} %, {ratio.std():.3f}"
                    for ratio in uniform
                ),
                "{:.2f}, {:.2f}, {:.2f}".format(*np.percentile(ratios[name], [5, 50, 95])),
                *(f"{loss.mean():.4f}" for loss in losses[name]),
            ]
        )
    print(f"{jax.devices()[0].device_kind}, {versions()}")
    print(LEGEND)
    header = ["", "state", "moved"]
    header += [f"v, sqrt(v), {decay}" for decay in args.decays] + ["log-normal: 5, 50, 95 %"]
    header += [f"loss, {decay}" for decay in args.decays]
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sizes = {name: method.state_bytes for name, method in found.items()}
    draw(ratios, losses, sizes, args.decays, args.output)
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
