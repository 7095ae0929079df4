"""The step as compiled for an H100, without a GPU: extra `cuda`.

How many kernels a step launches, and the bytes that they read and write relative to the floor:
gradient, parameter and state read once, parameter and state written once. Nothing runs on a GPU.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import optax
from others import versions
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.cuda import ONE_LEAF, RATES, TRANSFORMER, VARIANTS, compile_step, floor, kernels

import rmsprop_jax


class Case(NamedTuple):
    """A row of the table.

    Attributes:
      variant: The name of the variant.
      rate: The name of the learning rate.
      ours: Our optimizer, if it is shown.
      optax: Optax's optimizer, if there is one.
      state: Bytes of state per parameter, in both.
    """

    variant: str
    rate: str
    ours: optax.GradientTransformation | None
    optax: optax.GradientTransformation | None
    state: int


def of_optax(rate: Any, weight_decay: float | None = None, **options: Any) -> Any:
    """Optax's RMSprop; with weight decay a chain like `optax.adamw`, but with `scale_by_rms`."""
    if weight_decay is None:
        return optax.rmsprop(rate, **options)
    return optax.chain(
        optax.scale_by_rms(**options),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def cases() -> list[Case]:
    """All rows."""
    ours = rmsprop_jax.rmsprop
    injected = optax.inject_hyperparams(ours)(1e-3, momentum=0.9)
    injected_optax = optax.inject_hyperparams(optax.rmsprop)(1e-3, momentum=0.9)
    pytorch = rmsprop_jax.dialects.pytorch(1e-3, momentum=0.9, weight_decay=0.1)
    bfloat16 = ours(1e-3, accumulator_dtype="bfloat16")
    one_byte = ours(1e-3, accumulator_dtype="float8_e5m2")
    return [
        *(
            Case(variant, name, ours(rate, **options), of_optax(rate, **options), state)
            for variant, (options, state) in VARIANTS.items()
            for name, rate in RATES.items()
        ),
        Case("momentum", "injected", injected, injected_optax, 8),
        Case("PyTorch's, momentum, weight decay", "constant", pytorch, None, 8),
        Case("bfloat16", "constant", bfloat16, None, 2),
        Case("one byte", "constant", one_byte, None, 1),
        Case("Adam", "constant", None, optax.adam(1e-3), 8),
    ]


def measure(case: Case) -> list[str]:
    """A row of the table."""
    row = [case.variant, case.rate]
    for optimizer in (case.ours, case.optax):
        for shapes in (TRANSFORMER, ONE_LEAF):
            if optimizer is None:
                row += ["-", "-"]
                continue
            found = kernels(compile_step(optimizer, shapes))
            over = sum(kernel.bytes for kernel in found) / floor(shapes, case.state)
            row += [f"{len(found)}", f"{over:.4f}"]
    return row


def main() -> None:
    """Prints the table."""
    names = list(dict.fromkeys(case.variant for case in cases()))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--variants", nargs="+", default=names, choices=names, metavar="NAME",
        help=f"of {', '.join(names)}; default: all",
    )  # fmt: skip
    chosen = set(parser.parse_args().variants)
    rows = [
        measure(case) for case in tqdm([c for c in cases() if c.variant in chosen], unit="variant")
    ]

    leaves = len(TRANSFORMER)
    print(f"compiled for an H100, not run; {versions()}")
    print(f"kernels, and bytes over the floor; {leaves} leaves of a transformer, or one leaf\n")
    header = ["variant", "learning rate"]
    for who in ("ours", "Optax"):
        header += [f"{who}, {leaves}: kernels", "bytes", f"{who}, 1: kernels", "bytes"]
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
