"""The step as XLA compiles it for an H100, without a GPU: extra `cuda`.

How many kernels a step launches, and the bytes that they read and write over the floor: gradient,
parameter and state read, parameter and state written, each once. Nothing is run on a GPU.
"""

import argparse
import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

# Else JAX looks for a GPU to run on.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from others import versions
from tqdm import tqdm

import rmsprop_jax

# What the compiler asks a GPU for, as XLA wrote it down for an H100 (a GpuTargetConfigProto).
H100 = Path(__file__).resolve().parents[1] / "tests" / "cuda" / "h100.txtpb"

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

# Options by name, and bytes of state a parameter.
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
    """What the GPU is asked to do once.

    Attributes:
      name: Such as ``"%loop_add_fusion"``.
      opcode: Such as ``"fusion"``.
      bytes: Those of its operands and of its results.
    """

    name: str
    opcode: str
    bytes: int


@cache
def _on_h100() -> SingleDeviceSharding:
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
    """A step without the gradient on leaves of these shapes, parameters and state donated."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    placed = partial(jax.ShapeDtypeStruct, sharding=_on_h100())
    params = [placed(shape, dtype) for shape in shapes]
    state = jax.eval_shape(optimizer.init, params)
    state = jax.tree.map(lambda x: placed(x.shape, x.dtype), state)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


# What nothing is launched for, and what runs other computations, which would have to be counted.
_NO_KERNEL = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_CONTROL = {"async-done", "async-start", "call", "conditional", "copy-done", "copy-start", "while"}
# Name, type, opcode and operands.
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?(%\S+) = (.+?) ([a-z][a-z-]*)\(([^)]*)\)", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def kernels(compiled: jax.stages.Compiled) -> list[Kernel]:
    """Those of a program. What a kernel reads a part of counts whole.

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


def copied(compiled: jax.stages.Compiled) -> list[int]:
    """The elements of each array that is copied, by a kernel or inside one."""
    return [
        _elements(dims)
        for _, type_, opcode, _ in _instructions(_text(compiled))
        if opcode in ("copy", "copy-start")
        for _, _, dims in _ARRAY.findall(type_)
    ]


def floor(shapes: Shapes, state: int) -> int:
    """The bytes of a float32 step, with so many bytes of state a parameter."""
    return (12 + 2 * state) * sum(map(math.prod, shapes))


def _text(compiled: jax.stages.Compiled) -> str:
    text = compiled.as_text()
    assert text is not None
    return text


def _instructions(text: str) -> Iterator[tuple[str, str, str, set[str]]]:
    """The name, type, opcode and different operands of each."""
    for name, type_, opcode, operands in _INSTRUCTION.findall(text):
        # A parameter's operand is its number, a constant's its value.
        yield name, type_, opcode, set(re.findall(r"%[\w.-]+", operands))


def _bytes(type_: str) -> int:
    """The bytes of an array, or of the arrays in a tuple, such as ``"(f32[2,3], pred[])"``."""
    arrays = _ARRAY.findall(type_)
    # "pred" names no bits: it takes eight.
    return sum(int(bits or 8) * _elements(dims) // 8 for _, bits, dims in arrays)


def _elements(dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n)


class Case(NamedTuple):
    """A row of the table.

    Attributes:
      variant: Its name.
      rate: That of the learning rate.
      ours: Our optimizer, if it is to be shown.
      optax: Optax's, if there is one.
      state: Bytes of state a parameter, of both.
    """

    variant: str
    rate: str
    ours: optax.GradientTransformation | None
    optax: optax.GradientTransformation | None
    state: int


def of_optax(rate: Any, weight_decay: float | None = None, **options: Any) -> Any:
    """Optax's RMSprop; with weight decay the chain that `optax.adamw` is, with RMSprop's scale."""
    if weight_decay is None:
        return optax.rmsprop(rate, **options)
    return optax.chain(
        optax.scale_by_rms(**options),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def cases() -> list[Case]:
    """All rows."""
    ours, momentum = rmsprop_jax.rmsprop, {"momentum": 0.9}
    injected = [optax.inject_hyperparams(make)(1e-3, **momentum) for make in (ours, optax.rmsprop)]
    pytorch = rmsprop_jax.dialects.pytorch(1e-3, weight_decay=0.1, **momentum)
    bfloat16 = ours(1e-3, accumulator_dtype="bfloat16")
    one_byte = ours(1e-3, accumulator_dtype="float8_e5m2")
    return [
        *(
            Case(variant, name, ours(rate, **options), of_optax(rate, **options), state)
            for variant, (options, state) in VARIANTS.items()
            for name, rate in RATES.items()
        ),
        Case("momentum", "injected", *injected, 8),
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
