"""The time of the optimizer's part of a training step: ours, Optax's and torch's in one run.

Each number is the median over rounds of the ratio of two times, measured one after the
other in alternating order. The floor is the time in which the machine's memory moves every
byte that a step must read or write (gradient, parameter and state read; parameter and state
written), at the bandwidth of a copy timed in the same round. A second table has the time that
a step takes in Python: to be traced and lowered, and to run without compilation.
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

# Options by name, and bytes of state per parameter.
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
# Options by name, for the time in Python.
IN_PYTHON: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centred, momentum": {"centered": True, "momentum": 0.9},
    "bias correction": {"bias_correction": True},
    "schedule": {"learning_rate": optax.cosine_decay_schedule(1e-3, 1000)},
    "bfloat16": {"accumulator_dtype": "bfloat16"},
    "one byte": {"accumulator_dtype": "float8_e5m2"},
}
# The variants that torch has too; its eps is always outside the root.
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
    """The step of torch.optim.RMSprop with torch's default implementation."""
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


def measure(
    runs: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each run in each round, in alternating order.

    ``before`` is called before each run, and not timed.
    """
    for run in runs.values():
        run()  # compiles
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: -1 if i % 2 else 1]:
            before()
            times[name].append(seconds(runs[name]))
    return times


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def compare(name: str, leaves: int, size: int, rounds: int) -> list[str]:
    """A row of the table: our time relative to the floor, Optax's and torch's."""
    options, state = VARIANTS[name]
    runs = {
        "ours": jax_step(rmsprop_jax.rmsprop(1e-3, **options), leaves, size),
        "Optax": jax_step(optax.rmsprop(1e-3, **_of_optax(options)), leaves, size),
        "copy": copy(leaves * size),
    }
    if torch is not None and name in OF_TORCH:
        runs["torch"] = torch_step(name, leaves, size)
    times = measure(runs, rounds)
    # The copy moves 8 bytes per parameter: it reads and writes a float32.
    floor = [t * (12 + 2 * state) / 8 for t in times["copy"]]
    row = [name, f"{leaves}", f"{median_ratio(times['ours'], floor):.2f}"]
    for other in ("Optax", "torch"):
        row.append(f"{median_ratio(times['ours'], times[other]):.2f}" if other in times else "-")
    return row


def lowering(optimizer: optax.GradientTransformation, leaves: int) -> Callable[[], Any]:
    """Traces an update and lowers it to StableHLO, the first part of a compilation."""
    params = _varied(leaves, partial(jax.ShapeDtypeStruct, dtype=jnp.float32))
    state = jax.eval_shape(optimizer.init, params)
    # A new function each time, otherwise JAX would use its cache.
    return lambda: jax.jit(lambda g, s: optimizer.update(g, s)).lower(params, state)


def uncompiled(optimizer: optax.GradientTransformation, leaves: int) -> Callable[[], Any]:
    """Ten updates outside of ``jax.jit``."""
    params = _varied(leaves, jnp.ones)
    carry = [optimizer.init(params)]

    def run() -> None:
        for _ in range(10):
            updates, carry[0] = optimizer.update(params, carry[0])
            jax.block_until_ready((updates, carry[0]))

    return run


def _varied(leaves: int, make: Callable[[tuple[int, int]], Any]) -> list[Any]:
    """Leaves of seven different shapes, as in a network."""
    return [make((i % 7 + 1, 4)) for i in range(leaves)]


def compare_in_python(name: str, leaves: int, rounds: int) -> list[str]:
    """A row of the second table: our time in Python relative to Optax's."""
    options = {"learning_rate": 1e-3, **IN_PYTHON[name]}
    ours = rmsprop_jax.rmsprop(**options)
    theirs = optax.rmsprop(**_of_optax(options))
    lower = {"ours": lowering(ours, leaves), "Optax": lowering(theirs, leaves)}
    update = {"ours": uncompiled(ours, 20), "Optax": uncompiled(theirs, 20)}
    measured = [
        # As in a new process, where nothing has been traced yet.
        measure(lower, rounds, before=jax.clear_caches),
        measure(lower, rounds),
        measure(update, rounds),
    ]
    return [name, *(f"{median_ratio(times['ours'], times['Optax']):.2f}" for times in measured)]


def _of_optax(options: dict[str, Any]) -> dict[str, Any]:
    """Optax keeps averages in float32 here, whatever ours does."""
    return {k: v for k, v in options.items() if k != "accumulator_dtype"}


def compile_ratio(leaves: int, accumulator_dtype: str) -> float:
    """The time to compile a step in this dtype, relative to float32."""

    def compile_(dtype: str | None) -> None:
        optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype)
        # Leaves of different shapes, as in a network.
        params = [jax.ShapeDtypeStruct((i + 1, 128), jnp.float32) for i in range(leaves)]
        jax.jit(optimizer.update).lower(params, jax.eval_shape(optimizer.init, params)).compile()

    times = measure(
        {"dtype": partial(compile_, accumulator_dtype), "float32": partial(compile_, None)}, 1
    )
    return median_ratio(times["dtype"], times["float32"])


def parse_arguments(
    description: str | None, log2_size: int, rounds: int, leaves: list[int]
) -> argparse.Namespace:
    """The command line, with these defaults."""
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


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table whose first column is 18 wide."""
    widths = [18, *(max(len(name), 5) for name in header[1:])]
    for row in [header, ["---"] * len(header), *rows]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Prints the table."""
    args = parse_arguments(__doc__, log2_size=24, rounds=15, leaves=[1, 200])
    size = 2**args.log2_size
    cases = [
        (name, leaves, size // leaves, args.rounds) for leaves in args.leaves for name in VARIANTS
    ]
    rows = [compare(*case) for case in tqdm(cases, unit="variant")]
    traced = 2 * max(args.leaves)
    in_python = [
        compare_in_python(name, traced, args.rounds) for name in tqdm(IN_PYTHON, unit="variant")
    ]

    print(f"{jax.devices()[0].device_kind}, {size} parameters, {versions()}")
    print("our time over that of ...\n")
    print_table(["variant", "leaves", "floor", "Optax", "torch"], rows)
    print()
    few = min(max(args.leaves), 50)
    for dtype in ("bfloat16", "float8_e5m2"):
        print(f"compiling {few} leaves in {dtype}, over float32: {compile_ratio(few, dtype):.1f}")
    print(f"\nour time in Python over Optax's: tracing and lowering {traced} leaves, the first")
    print("time and again, and an uncompiled update of 20 leaves\n")
    print_table(["variant", "first", "again", "uncompiled"], in_python)


if __name__ == "__main__":
    main()
