"""How the state of a sharded RMSprop scales to slices of a TPU pod, as the compiler sees it.

The optimizer's part of a training step is compiled ahead of time for two language models,
with FSDP over all chips of a slice: what each chip holds of the state, which collectives the
chips run, how long it takes to compile, and how large the program is. Nothing is run on a
TPU, and nothing is allocated; it needs the TPU compiler: `pip install -e '.[tpu]'`.
"""

import argparse
import math
import sys
import time
from collections import Counter
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tpu
from jax.sharding import Mesh
from others import versions
from tqdm import tqdm

import rmsprop_jax
from rmsprop_jax import sharding

STORAGES = ("float32", "bfloat16", "float8_e5m2")
LEGEND = """
state: what each chip holds, by the shardings
padding: how much more memory it takes in the compiler's tiles, which is checked to the byte
collectives: of the optimizer's part, and of how many numbers
compile, program: seconds from Python to the program, and its size
"""


class Model(NamedTuple):
    """A decoder-only transformer with a gated MLP and RMS norms, embeddings not shared.

    Attributes:
      layers: How many.
      width: Of the stream.
      keys: Of keys and values; less than ``width`` where heads share them.
      hidden: Of the MLP.
      vocabulary: Tokens.
    """

    layers: int
    width: int
    keys: int
    hidden: int
    vocabulary: int = 32000


# By billions of parameters: the shapes of TinyLlama and of Llama 2.
MODELS = {1: Model(22, 2048, 256, 5632), 7: Model(32, 4096, 4096, 11008)}


class Measured(NamedTuple):
    """One program.

    Attributes:
      state: Bytes per chip, by the shardings.
      padded: The same in memory, with the padding of the compiler's tiles.
      collectives: Of the program.
      seconds: To trace and compile it.
      program: Its bytes.
    """

    state: int
    padded: int
    collectives: list[tpu.Collective]
    seconds: float
    program: int


def parameters(model: Model) -> Any:
    """The tree of shapes, one leaf per matrix and layer."""

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def layer() -> dict[str, Any]:
        return {
            "attention_norm": leaf(width),
            "queries": leaf(width, width),
            "keys": leaf(width, model.keys),
            "values": leaf(width, model.keys),
            "output": leaf(width, width),
            "mlp_norm": leaf(width),
            "gate": leaf(width, model.hidden),
            "up": leaf(width, model.hidden),
            "down": leaf(model.hidden, width),
        }

    width = model.width
    return {
        "embedding": leaf(model.vocabulary, width),
        "layers": [layer() for _ in range(model.layers)],
        "norm": leaf(width),
        "logits": leaf(width, model.vocabulary),
    }


def count(params: Any) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def shard_bytes(tree: Any) -> int:
    """Bytes that a chip holds of a tree."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def padded_bytes(tree: Any, formats: Any) -> int:
    """What it takes in memory, in the layouts that the compiler has chosen."""

    def size(x: Any, layout: Any) -> int:
        shard = x.sharding.shard_shape(x.shape)
        tile = layout.tiling[0]
        axes = [1] * len(tile) + [shard[i] for i in layout.major_to_minor]
        # The last axes are tiled, and each is padded to a multiple of the tile.
        untiled, tiled = axes[: -len(tile)], axes[-len(tile) :]
        tiled = [math.ceil(a / t) * t for a, t in zip(tiled, tile, strict=True)]
        return math.prod(untiled + tiled) * x.dtype.itemsize

    leaves, formats = jax.tree.leaves(tree), jax.tree.leaves(formats)
    return sum(size(x, f.layout) for x, f in zip(leaves, formats, strict=True))


def measure(model: Model, mesh: Mesh, dtype: str) -> Measured:
    """Compiles the optimizer's part with FSDP.

    Raises:
      RuntimeError: If the program does not hold exactly each chip's shard.
    """
    optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype)
    params = parameters(model)
    state = jax.eval_shape(optimizer.init, params)
    params = tpu.placed(params, sharding.shard_over(params, mesh))
    state = tpu.placed(state, sharding.state_shardings(optimizer, params))

    began = time.perf_counter()
    compiled = tpu.compile_update(optimizer, params, state)
    seconds = time.perf_counter() - began

    analysis = compiled.memory_analysis()
    assert analysis is not None
    of_params, of_state, of_gradients = (
        padded_bytes(tree, formats)
        for tree, formats in zip(
            (params, state, params), compiled.input_formats[0][:3], strict=True
        )
    )
    # All that goes in is there, and parameters and state are written where they were.
    expected = of_params + of_state + of_gradients, of_params + of_state
    found = analysis.argument_size_in_bytes, analysis.alias_size_in_bytes
    if found != expected:
        raise RuntimeError(f"bytes of arguments and in place: {found}, by the shards {expected}")
    return Measured(
        shard_bytes(state),
        of_state,
        tpu.collectives(compiled),
        seconds,
        analysis.generated_code_size_in_bytes,
    )


def numbers(collective: tpu.Collective) -> int:
    """How many each chip has of it."""
    axes = [shape[shape.index("[") + 1 : -1] for shape in collective.shapes]
    return sum(math.prod(map(int, filter(None, text.split(",")))) for text in axes)


def described(collectives: list[tpu.Collective]) -> str:
    """Each kind, how many there are of it, and of how many numbers."""
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
