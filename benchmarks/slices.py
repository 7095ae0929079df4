"""How the state of a sharded RMSprop scales to slices of a TPU pod, by what the compiler reports.

The optimizer's part of a training step is compiled ahead of time for two language models,
with FSDP over all chips of a slice. The table says what each chip holds of the state, which
collectives the chips run, how long it takes to compile, and how large the program is. Nothing
is run on a TPU or allocated, but the TPU compiler is needed: `pip install -e '.[tpu]'`.
"""

import argparse
import math
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jax
from jax.sharding import Mesh
from others import versions
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import tpu
from support.slices import MODELS, count, measure, parameters

from rmsprop_jax import _storage

STORAGES = ("float32", *(dtype.name for dtype in _storage.low_precision_dtypes()))
LEGEND = """
state: what each chip holds, by the shardings
padding: how much more memory it takes in the compiler's tiles, which is checked to the byte
collectives: of the optimizer's part, and of how many numbers
compile, program: seconds from Python to the program, and its size
"""


def numbers(collective: tpu.Collective) -> int:
    """How many numbers each chip gets from a collective."""
    axes = [shape[shape.index("[") + 1 : -1] for shape in collective.shapes]
    return sum(math.prod(map(int, filter(None, text.split(",")))) for text in axes)


def described(collectives: list[tpu.Collective]) -> str:
    """The collectives as text: how many of each kind, and of how many numbers in all."""
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for collective in collectives:
        kinds[collective.kind] += 1
        sizes[collective.kind] += numbers(collective)
    return ", ".join(f"{n} {kind} of {sizes[kind]}" for kind, n in kinds.items()) or "none"


def parse_arguments() -> tuple[argparse.Namespace, dict[str, Mesh]]:
    """The command line, and the chips of each slice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--billions", type=int, nargs="+", default=[*MODELS], choices=MODELS,
        help="models by their parameters",
    )  # fmt: skip
    parser.add_argument(
        "--topologies", nargs="+", default=["v5e:2x4", "v5e:8x8", "v5e:16x16"], metavar="SLICE",
        help="slices, such as v6e:2x4",
    )  # fmt: skip
    parser.add_argument(
        "--layers", type=int, default=32, choices=range(1, 33), metavar="1..32",
        help="the most layers of a model, for a short run",
    )  # fmt: skip
    args = parser.parse_args()
    if not tpu.AVAILABLE:
        sys.exit("the TPU compiler, libtpu, is not installed: pip install -e '.[tpu]'")
    try:
        return args, {name: tpu.slice_mesh(name) for name in args.topologies}
    except jax.errors.JaxRuntimeError as error:
        parser.error(f"--topologies: {error}")


def main() -> None:
    """Prints the table."""
    args, meshes = parse_arguments()
    began = time.perf_counter()
    cases = [
        (MODELS[billions]._replace(layers=min(args.layers, MODELS[billions].layers)), name, dtype)
        for billions in args.billions
        for name in meshes
        for dtype in STORAGES
    ]
    rows, largest = [], {}
    for model, name, dtype in tqdm(cases, unit="program"):
        params, chips = count(parameters(model)), meshes[name].size
        measured = measure(model, meshes[name], dtype)
        largest[dtype] = max(largest.get(dtype, 0), measured.state * chips / params)
        rows.append(
            [
                f"{params:,}",
                dtype,
                name,
                str(chips),
                f"{measured.state / 1e6:.2f}",
                f"{100 * (measured.padded / measured.state - 1):.1f} %",
                described(measured.collectives),
                f"{measured.seconds:.0f}",
                f"{measured.program / 1e6:.1f}",
            ]
        )

    print("Compiled for TPU ahead of time: the compiler's view. Nothing was run on a TPU.")
    print(LEGEND)
    header = ["parameters", "storage", "slice", "chips", "state, MB per chip", "padding"]
    header += ["collectives", "compile, s", "program, MB"]
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    of_all = ", ".join(f"{size:.3f} in {dtype}" for dtype, size in largest.items())
    print(
        f"\nslices: bytes of state per parameter, all chips of a slice together: at most {of_all}; "
        f"compiled only, nothing was run on a TPU; {versions()}, libtpu {version('libtpu')}; "
        f"{time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
