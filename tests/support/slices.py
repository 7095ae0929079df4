"""The optimizer's part of a training step with FSDP, compiled for a slice of a TPU pod."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import rmsprop_jax
from rmsprop_jax import sharding
from support import tpu


class Model(NamedTuple):
    """A decoder-only transformer with a gated MLP and RMS norms, embeddings not shared.

    Attributes:
      layers: The number of layers.
      width: The width of the residual stream.
      keys: The width of keys and of values; less than ``width`` if heads share them.
      hidden: The width of the MLP.
      vocabulary: The number of tokens.
    """

    layers: int
    width: int
    keys: int
    hidden: int
    vocabulary: int = 32000


# The shapes of TinyLlama and of Llama 2, by billions of parameters.
MODELS = {1: Model(22, 2048, 256, 5632), 7: Model(32, 4096, 4096, 11008)}


class Measured(NamedTuple):
    """Measurements of a compiled program.

    Attributes:
      state: Bytes of state per chip, by the shardings.
      padded: The same with the padding of the compiler's tiles.
      collectives: The collectives of the program.
      seconds: The time to trace and compile it.
      program: Its size in bytes.
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
    """The bytes of a tree that one chip holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def padded_bytes(tree: Any, formats: Any) -> int:
    """The bytes of a tree in one chip's memory, in the layouts that the compiler chose."""

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
    param_bytes, state_bytes, gradient_bytes = (
        padded_bytes(tree, formats)
        for tree, formats in zip(
            (params, state, params), compiled.input_formats[0][:3], strict=True
        )
    )
    # The arguments are exactly these, and parameters and state are written in place.
    expected = param_bytes + state_bytes + gradient_bytes, param_bytes + state_bytes
    found = analysis.argument_size_in_bytes, analysis.alias_size_in_bytes
    if found != expected:
        raise RuntimeError(f"bytes of arguments, and in place: {found}; expected {expected}")
    return Measured(
        shard_bytes(state),
        state_bytes,
        tpu.collectives(compiled),
        seconds,
        analysis.generated_code_size_in_bytes,
    )
