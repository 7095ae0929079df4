"""The step as compiled for TPU: one pass that moves each byte once. Extra `tpu`.

Compiled ahead of time; nothing is run. One leaf per program, since with several the compiler
prefetches into on-chip memory and counts those copies too.
"""

import math
import re

import jax.numpy as jnp
import optax
import pytest
from support.tpu import bytes_accessed, compile_step

import rmsprop_jax

SHAPES = [(50304, 768), (4096, 4096), (3, 3, 512, 512), (2**24,)]
# Options by name, and the numbers of averages of squares and of other averages in the state.
VARIANTS = {
    "plain": ({}, 1, 0),
    "eps outside": ({"eps_in_sqrt": False}, 1, 0),
    "momentum": ({"momentum": 0.9}, 1, 1),
    "centred, momentum": ({"centered": True, "momentum": 0.9}, 1, 2),
}
# Bytes per element of averages of squares, and of the others.
STORAGES = {None: (4, 4), "bfloat16": (2, 2), "float8_e5m2": (1, 2)}

topology = pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4"])


def assert_at_floor(compiled, shape, bytes_per_element, devices=1):
    floor = math.prod(shape) * bytes_per_element / devices
    assert bytes_accessed(compiled) <= 1.01 * floor
    # Scalars take tiles of 512 bytes: up to 210 kB in 8 bits, however large the leaf is.
    assert compiled.memory_analysis().temp_size_in_bytes <= max(0.01 * floor, 220_000)


@topology
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_step_is_at_the_floor(dtype, variant, shape, topology):
    """Gradient and parameter read, parameter written, state read and written."""
    options, squares, others = VARIANTS[variant]
    optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype, **options)
    compiled = compile_step(topology, shape, optimizer)
    square_bytes, other_bytes = STORAGES[dtype]
    assert_at_floor(compiled, shape, 12 + 2 * (squares * square_bytes + others * other_bytes))


@topology
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_in_bfloat16_is_at_the_floor(shape, topology):
    """Two bytes per gradient and per parameter, one byte of state."""
    optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype="float8_e5m2")
    compiled = compile_step(topology, shape, optimizer, jnp.bfloat16, rmsprop_jax.apply_updates)
    assert_at_floor(compiled, shape, 2 + 2 * 2 + 2 * 1)


@pytest.mark.parametrize("spec", [("data",), (None, "data")], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_sharded_state_stays_where_it_is(dtype, variant, spec):
    """Eight chips: nothing is gathered; only the amax of an 8-bit leaf is reduced."""
    options, _, _ = VARIANTS[variant]
    optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype, **options)
    text = compile_step("v5e:2x4", (4096, 4096), optimizer, devices=8, spec=spec).as_text()
    collectives = re.findall(
        r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
        r"(?:-start)?\(",
        text,
    )
    kinds = [kind for _, kind in collectives]
    assert kinds == (["all-reduce"] if dtype == "float8_e5m2" else [])
    # One float32.
    assert all(re.match(r"f32\[(1,)*1?\]", shape) for shape, _ in collectives)


def test_the_floor_test_can_fail():
    """A scale from the newest amax takes a second pass, which the test sees."""

    def init(params):
        return jnp.zeros(params.shape, jnp.float8_e5m2)

    def update(gradients, state, params=None):
        average = 0.9 * state.astype(jnp.float32) + 0.1 * gradients**2
        codes = (average / jnp.max(average)).astype(jnp.float8_e5m2)
        return -gradients / jnp.sqrt(average + 1e-8), codes

    bad = optax.GradientTransformation(init, update)
    compiled = compile_step("v5e:2x4", (4096, 4096), bad)
    with pytest.raises(AssertionError):
        assert_at_floor(compiled, (4096, 4096), 14)
