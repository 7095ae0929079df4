"""How long a low-precision step takes to trace and compile, relative to Optax's in float32.

Many leaves of different shapes, for this CPU, for an H100 (extra `cuda`) and for TPU v5e (extra
`tpu`), if installed. Nothing is run. The times are from one run, measured one after the other.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding, SingleDeviceSharding
from others import versions
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import cuda, tpu

from rmsprop_jax import rmsprop

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "Optax, float32": lambda: optax.rmsprop(1e-3),
    "float32": lambda: rmsprop(1e-3),
    "bfloat16": lambda: rmsprop(1e-3, accumulator_dtype="bfloat16"),
    "one byte": lambda: rmsprop(1e-3, accumulator_dtype="float8_e5m2"),
}


def targets() -> dict[str, Sharding]:
    """The devices that a program can be compiled for, by name."""
    found: dict[str, Sharding] = {"CPU": SingleDeviceSharding(jax.devices("cpu")[0])}
    if find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda13") is not None:
        found["H100"] = cuda.on_h100()
    if tpu.AVAILABLE:
        found["TPU v5e"] = SingleDeviceSharding(tpu.slice_mesh("v5e:2x4", 1).devices.flat[0])
    return found


def seconds(optimizer: optax.GradientTransformation, leaves: int, sharding: Sharding) -> float:
    """The time to trace and compile a step."""

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = [jax.ShapeDtypeStruct((8 * (i + 1), 128), jnp.float32) for i in range(leaves)]
    state = jax.tree.map(placed, jax.eval_shape(optimizer.init, shapes))
    params = jax.tree.map(placed, shapes)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    began = time.perf_counter()
    jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--leaves", type=int, default=400, help="of how many shapes")
    args = parser.parse_args()
    if args.leaves < 1:
        parser.error("--leaves must be at least 1")
    rows = {name: [name] for name in OPTIMIZERS}
    shardings = targets()
    with tqdm(total=len(shardings) * len(OPTIMIZERS), unit="program") as progress:
        for sharding in shardings.values():
            first = None
            for name, make in OPTIMIZERS.items():
                taken = seconds(make(), args.leaves, sharding)
                first = first or taken
                rows[name].append(f"{taken / first:.1f}")
                progress.update()
    print(
        f"{versions()}; {args.leaves} leaves; from Python to the program, over Optax's in float32"
    )
    print("| " + " | ".join(["", *shardings]) + " |\n" + "|---" * (1 + len(shardings)) + "|")
    for row in rows.values():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
