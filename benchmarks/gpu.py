"""The speed of a step on a GPU, as a fraction of what its memory bandwidth allows.

Ours in three dtypes, Optax's, torch's (foreach, and compiled) and bitsandbytes' 8-bit RMSprop, on
one leaf and on 400. The floor is the time to move the bytes that a step must move (gradient read,
parameter and state read and written), at the bandwidth of a copy timed in the same round. 1.00 is
the floor; 0.50 takes twice as long. torch and bitsandbytes are left out if they are not installed.
To try the script on a CPU: `--log2-size 20`.
"""

import gc
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

# Leave memory for torch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import optax
from others import bitsandbytes, torch, versions
from step import copy, jax_step, measure, parse_arguments
from tqdm import tqdm

import rmsprop_jax

Step = Callable[[], Any]


def torch_step(make: Callable[..., Any], compiled: bool, leaves: int, size: int) -> Step:
    """A step of a torch optimizer, until it has finished."""
    assert torch is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = [torch.ones(size, device=device, requires_grad=True) for _ in range(leaves)]
    for p in params:
        p.grad = torch.full((size,), 0.1, device=device)
    optimizer = make(params, lr=1e-3, alpha=0.9)
    step = torch.compile(optimizer.step) if compiled else optimizer.step

    def run() -> None:
        assert torch is not None
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def methods() -> dict[str, tuple[Callable[[int, int], Step], float]]:
    """By name: makes a step from leaves and their size; and bytes of state per parameter."""

    def of_jax(optimizer: optax.GradientTransformation) -> Callable[[int, int], Step]:
        return partial(jax_step, optimizer)

    found: dict[str, tuple[Callable[[int, int], Step], float]] = {
        "ours, float32": (of_jax(rmsprop_jax.rmsprop(1e-3)), 4),
        "ours, bfloat16": (of_jax(rmsprop_jax.rmsprop(1e-3, accumulator_dtype="bfloat16")), 2),
        "ours, one byte": (of_jax(rmsprop_jax.rmsprop(1e-3, accumulator_dtype="float8_e5m2")), 1),
        "Optax": (of_jax(optax.rmsprop(1e-3)), 4),
    }
    if torch is not None:
        foreach = partial(torch.optim.RMSprop, foreach=True)
        found["torch, foreach"] = (partial(torch_step, foreach, False), 4)
        if torch.cuda.is_available():
            found["torch, compiled"] = (partial(torch_step, foreach, True), 4)
    if torch is not None and bitsandbytes is not None:
        eight_bits = bitsandbytes.optim.rmsprop.RMSprop8bit
        found["bitsandbytes, 8 bits"] = (partial(torch_step, eight_bits, False), 1 + 4 / 256)
    return found


def row(name: str, leaves: int, size: int, rounds: int) -> list[str]:
    """A row of the table: milliseconds, and the floor divided by them."""
    make, state_bytes = methods()[name]
    words = leaves * size
    times = measure({"step": make(leaves, size), "copy": copy(words)}, rounds)
    # The copy moves 8 bytes per parameter: it reads and writes a float32.
    floor = (12 + 2 * state_bytes) / 8
    fractions = [floor * c / s for s, c in zip(times["step"], times["copy"], strict=True)]
    return [
        name,
        str(leaves),
        f"{1e3 * statistics.median(times['step']):.2f}",
        f"{statistics.median(fractions):.3f}",
        f"{8 * words / statistics.median(times['copy']) / 1e9:.0f}",
    ]


def main() -> None:
    """Prints the table."""
    args = parse_arguments(__doc__, log2_size=28, rounds=20, leaves=[1, 400])
    rows = []
    for leaves in args.leaves:
        for name in tqdm(methods(), unit="method", desc=f"{leaves} leaves"):
            rows.append(row(name, leaves, 2**args.log2_size // leaves, args.rounds))
            gc.collect()
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()

    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), 2**{args.log2_size} parameters")
    print(versions(), end="\n\n")
    print("| method | leaves | ms per step | of the floor | copy, GB/s |")
    print("|---|---|---|---|---|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
