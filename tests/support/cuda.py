"""A step as XLA compiles it for an H100, without a GPU, and its kernels. Extra `cuda`."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# Otherwise JAX would look for a GPU to run on.
jax.config.update("jax_platforms", "cpu")

# What the compiler needs to know about a GPU, written by XLA for an H100 (a GpuTargetConfigProto).
H100 = Path(__file__).parents[1] / "cuda" / "h100.txtpb"

Shapes = Sequence[tuple[int, ...]]
ONE_LEAF: Shapes = [(4096, 4096)]
# A transformer of 85 million parameters.
TRANSFORMER: Shapes = [
    *[(768, 768)] * 48,
    *[(768,)] * 90,
    *[(3072, 768)] * 12,
    *[(768, 3072)] * 12,
    *[(3072,)] * 12,
]

# A few leaves of the same kinds.
FEW_LEAVES: Shapes = [
    *[(768, 768)] * 6,
    *[(768,)] * 10,
    *[(3072, 768)] * 4,
    *[(768, 3072)] * 4,
]

# Options by name, and bytes of state per parameter.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 4),
    "eps outside": ({"eps_in_sqrt": False}, 4),
    "bias correction": ({"bias_correction": True}, 4),
    "weight decay": ({"weight_decay": 0.1}, 4),
    "momentum": ({"momentum": 0.9}, 8),
    "Nesterov": ({"momentum": 0.9, "nesterov": True}, 8),
    "centred": ({"centered": True}, 8),
    "centred, bias correction": ({"centered": True, "bias_correction": True}, 8),
    "centred, momentum": ({"centered": True, "momentum": 0.9}, 12),
}
RATES: dict[str, Any] = {"constant": 1e-3, "schedule": optax.cosine_decay_schedule(1e-3, 1000)}


class Kernel(NamedTuple):
    """A kernel that the program launches.

    Attributes:
      name: Such as ``"%loop_add_fusion"``.
      opcode: Such as ``"fusion"``.
      bytes: The bytes of its operands and results.
    """

    name: str
    opcode: str
    bytes: int


@cache
def on_h100() -> SingleDeviceSharding:
    """An H100 to compile for, without having one."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="1x1x1",
        topology="1x1x1",
        target_config=H100.read_text(),
    )
    return SingleDeviceSharding(topology.devices[0])


def compile_step(
    optimizer: optax.GradientTransformation, shapes: Shapes = TRANSFORMER, dtype: Any = jnp.float32
) -> jax.stages.Compiled:
    """A step without the gradient, on leaves of these shapes, with parameters and state donated."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    placed = partial(jax.ShapeDtypeStruct, sharding=on_h100())
    params = [placed(shape, dtype) for shape in shapes]
    state = jax.eval_shape(optimizer.init, params)
    state = jax.tree.map(lambda x: placed(x.shape, x.dtype), state)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


# Instructions without a kernel, and those that run other computations, which `kernels` rejects.
_NO_KERNEL = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_CONTROL = {"async-done", "async-start", "call", "conditional", "copy-done", "copy-start", "while"}
# Name, type, opcode and operands.
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?(%\S+) = (.+?) ([a-z][a-z-]*)\(([^)]*)\)", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def kernels(compiled: jax.stages.Compiled) -> list[Kernel]:
    """The kernels of a program. Each operand counts in full, even if only a part of it is read.

    Raises:
      NotImplementedError: If the program has a loop or a branch.
    """
    instructions = list(_instructions(_text(compiled).partition("\nENTRY ")[2]))
    types = {name: type_ for name, type_, _, _ in instructions}
    found = []
    for name, type_, opcode, operands in instructions:
        if opcode in _CONTROL:
            raise NotImplementedError(opcode)
        if opcode not in _NO_KERNEL:
            read = sum(_bytes(types[operand]) for operand in operands)
            found.append(Kernel(name, opcode, read + _bytes(type_)))
    return found


def instructions(compiled: jax.stages.Compiled) -> int:
    """The number of instructions in a program, including those inside kernels."""
    return len(re.findall(r"^.* = ", _text(compiled), re.MULTILINE))


def copied(compiled: jax.stages.Compiled) -> list[int]:
    """The elements of each array that is copied, by a kernel or inside one."""
    return [
        _elements(dims)
        for _, type_, opcode, _ in _instructions(_text(compiled))
        if opcode in ("copy", "copy-start")
        for _, _, dims in _ARRAY.findall(type_)
    ]


def floor(shapes: Shapes, state: int) -> int:
    """The least bytes of a float32 step, with ``state`` bytes of state per parameter."""
    return (12 + 2 * state) * sum(map(math.prod, shapes))


def _text(compiled: jax.stages.Compiled) -> str:
    text = compiled.as_text()
    assert text is not None
    return text


def _instructions(text: str) -> Iterator[tuple[str, str, str, set[str]]]:
    """The name, type, opcode and distinct operands of each instruction."""
    for name, type_, opcode, operands in _INSTRUCTION.findall(text):
        # A parameter's operand is its number, a constant's its value.
        yield name, type_, opcode, set(re.findall(r"%[\w.-]+", operands))


def _bytes(type_: str) -> int:
    """The bytes of an array, or of the arrays in a tuple, such as ``"(f32[2,3], pred[])"``."""
    arrays = _ARRAY.findall(type_)
    # "pred" has no number of bits in its name: it takes eight.
    return sum(int(bits or 8) * _elements(dims) // 8 for _, bits, dims in arrays)


def _elements(dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n)
