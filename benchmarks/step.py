"""The time of a training step's optimizer part: ours, Optax's and torch's in one run.

Each number is a ratio: the median over rounds of two times measured one after the
other, with the order turned round each time. The floor is what the machine's memory
allows: every byte that a step must read or write once (gradient, parameter and state
read; parameter and state written), at the bandwidth of a copy timed in the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from others import torch, versions
from tqdm import tqdm

import rmsprop_jax

# Options by name, and bytes of state a parameter.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 4),
    "eps outside": ({"eps_in_sqrt": False}, 4),
    "bias correction": ({"bias_correction": True}, 4),
    "momentum": ({"momentum": 0.9}, 8),
    "Nesterov": ({"momentum": 0.9, "nesterov": True}, 8),
    "centred": ({"centered": True}, 8),
    "centred, momentum": ({"centered": True, "momentum": 0.9}, 12),
    "bfloat16": ({"accumulator_dtype": "bfloat16"}, 2),
    "one byte": ({"accumulator_dtype": "float8_e5m2"}, 1),
    "one byte, momentum": ({"accumulator_dtype": "float8_e5m2", "momentum": 0.9}, 3),
}
# What torch can do too; its eps always stands outside the root.
OF_TORCH = {"eps outside", "momentum", "centred", "centred, momentum"}


def jax_step(optimizer: optax.GradientTransformation, leaves: int, size: int) -> Callable[[], Any]:
    """A compiled step on ``leaves`` leaves of ``size`` parameters, everything donated."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = [jnp.ones(size) for _ in range(leaves)]
    gradients = [jnp.full(size, 0.1) for _ in range(leaves)]
    carry = [params, optimizer.init(params)]

    def run() -> None:
        carry[:] = jax.block_until_ready(step(*carry, gradients))

    return run


def torch_step(name: str, leaves: int, size: int) -> Callable[[], Any]:
    """torch.optim.RMSprop's step as it comes."""
    assert torch is not None
    options = VARIANTS[name][0]
    params = [torch.ones(size, requires_grad=True) for _ in range(leaves)]
    for p in params:
        p.grad = torch.full((size,), 0.1)
    return torch.optim.RMSprop(
        params,
        lr=1e-3,
        alpha=0.9,
        momentum=options.get("momentum", 0.0),
        centered=options.get("centered", False),
    ).step


def copy(words: int) -> Callable[[], Any]:
    """Reads ``words`` float32 and writes them, in place as a step does."""
    negate = jax.jit(lambda x: -x, donate_argnums=0)
    carry = [jnp.ones(words)]

    def run() -> None:
        carry[0] = jax.block_until_ready(negate(carry[0]))

    return run


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, the order turned round every time."""
    for run in runs.values():
        run()  # compiles
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: -1 if i % 2 else 1]:
            times[name].append(seconds(runs[name]))
    return times


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def compare(name: str, leaves: int, size: int, rounds: int) -> list[str]:
    """A row of the table: our time over the floor, Optax's and torch's."""
    options, state = VARIANTS[name]
    # Optax keeps averages in float32 here, whatever ours does.
    theirs = {k: v for k, v in options.items() if k != "accumulator_dtype"}
    runs = {
        "ours": jax_step(rmsprop_jax.rmsprop(1e-3, **options), leaves, size),
        "Optax": jax_step(optax.rmsprop(1e-3, **theirs), leaves, size),
        "copy": copy(leaves * size),
    }
    if torch is not None and name in OF_TORCH:
        runs["torch"] = torch_step(name, leaves, size)
    times = measure(runs, rounds)
    # The copy reads and writes a float32.
    floor = [t * (12 + 2 * state) / 8 for t in times["copy"]]
    row = [name, f"{leaves}", f"{median_ratio(times['ours'], floor):.2f}"]
    for other in ("Optax", "torch"):
        row.append(f"{median_ratio(times['ours'], times[other]):.2f}" if other in times else "-")
    return row


def trace_ratio(leaves: int, rounds: int) -> float:
    """How much longer ours takes to trace: the price of the checks, paid once a compilation."""

    def trace(optimizer: optax.GradientTransformation) -> None:
        params = [jnp.ones(2)] * leaves
        jax.jit(lambda g, s: optimizer.update(g, s)).trace(params, optimizer.init(params))

    options = {"centered": True, "momentum": 0.9}
    times = measure(
        {
            "ours": partial(trace, rmsprop_jax.rmsprop(1e-3, **options)),
            "Optax": partial(trace, optax.rmsprop(1e-3, **options)),
        },
        rounds,
    )
    return median_ratio(times["ours"], times["Optax"])


def compile_ratio(leaves: int, accumulator_dtype: str) -> float:
    """How much longer such a step takes to compile than one in float32."""

    def compile_(dtype: str | None) -> None:
        optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype)
        # Leaves of different shapes, as a network has them.
        params = [jax.ShapeDtypeStruct((i + 1, 128), jnp.float32) for i in range(leaves)]
        jax.jit(optimizer.update).lower(params, jax.eval_shape(optimizer.init, params)).compile()

    times = measure(
        {"narrow": partial(compile_, accumulator_dtype), "float32": partial(compile_, None)}, 1
    )
    return median_ratio(times["narrow"], times["float32"])


def parse_arguments(
    description: str | None, log2_size: int, rounds: int, leaves: list[int]
) -> argparse.Namespace:
    """How much is measured, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--log2-size", type=int, default=log2_size, choices=range(10, 31), metavar="10..30",
        help="parameters in all, as a power of two",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=rounds, choices=range(1, 1001), metavar="1..1000",
        help="measurements of each",
    )  # fmt: skip
    parser.add_argument(
        "--leaves", type=int, nargs="+", default=leaves, metavar="N",
        help="into how many leaves the parameters are split",
    )  # fmt: skip
    args = parser.parse_args()
    if not all(1 <= leaves <= 2**args.log2_size for leaves in args.leaves):
        parser.error("--leaves must be at least 1 and leave each a parameter")
    return args


def main() -> None:
    """Prints the table."""
    args = parse_arguments(__doc__, log2_size=24, rounds=15, leaves=[1, 200])
    size = 2**args.log2_size
    cases = [
        (name, leaves, size // leaves, args.rounds) for leaves in args.leaves for name in VARIANTS
    ]
    rows = [compare(*case) for case in tqdm(cases, unit="variant")]

    print(f"{jax.devices()[0].device_kind}, {size} parameters, {versions()}")
    print("our time over that of ...\n")
    header = ["variant", "leaves", "floor", "Optax", "torch"]
    for row in [header, ["---"] * len(header), *rows]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, (18, 6, 5, 5, 5), strict=True)]
        print("| " + " | ".join(cells) + " |")
    most = max(args.leaves)
    print(f"\ntracing {most} leaves, over Optax: {trace_ratio(most, min(args.rounds, 5)):.1f}")
    few = min(most, 50)
    for dtype in ("bfloat16", "float8_e5m2"):
        print(f"compiling {few} leaves in {dtype}, over float32: {compile_ratio(few, dtype):.1f}")


if __name__ == "__main__":
    main()
