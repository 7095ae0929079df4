"""The step as compiled for an H100: few kernels, which move each byte once. Extra `cuda`.

Compiled ahead of time; nothing is run. `h100.txtpb` tells the compiler about the GPU.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from support.cuda import (
    FEW_LEAVES,
    ONE_LEAF,
    RATES,
    TRANSFORMER,
    VARIANTS,
    compile_step,
    copied,
    floor,
    instructions,
    kernels,
)
from support.scripts import printed

import rmsprop_jax

pytestmark = pytest.mark.optimized
LEAVES = len(TRANSFORMER)
INJECTED = optax.inject_hyperparams(rmsprop_jax.rmsprop)(1e-3, momentum=0.9)
PYTORCH = rmsprop_jax.dialects.pytorch(1e-3, momentum=0.9, weight_decay=0.1)

variants = pytest.mark.parametrize("variant", VARIANTS)
rates = pytest.mark.parametrize("rate", RATES)


def assert_at_floor(compiled, shapes, state, most=1.01):
    """Gradient and parameter read, parameter written, state read and written."""
    least = floor(shapes, state)
    # Less than the floor would be a miscount.
    assert least <= sum(kernel.bytes for kernel in kernels(compiled)) <= most * least
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.01 * least


def assert_no_leaf_is_copied(compiled):
    assert max(copied(compiled), default=0) < 768


@rates
@variants
def test_one_leaf_is_at_the_floor(variant, rate):
    options, state = VARIANTS[variant]
    compiled = compile_step(rmsprop_jax.rmsprop(RATES[rate], **options), ONE_LEAF)
    assert_at_floor(compiled, ONE_LEAF, state)
    assert_no_leaf_is_copied(compiled)


@rates
@variants
def test_transformer_is_at_the_floor_in_few_kernels(variant, rate):
    options, state = VARIANTS[variant]
    compiled = compile_step(rmsprop_jax.rmsprop(RATES[rate], **options))
    assert len(kernels(compiled)) <= 40
    assert_at_floor(compiled, TRANSFORMER, state)
    assert_no_leaf_is_copied(compiled)


@pytest.mark.parametrize("optimizer", [INJECTED, PYTORCH], ids=["inject_hyperparams", "pytorch"])
def test_inject_hyperparams_and_pytorch_are_at_the_floor_in_few_kernels(optimizer):
    compiled = compile_step(optimizer)
    assert len(kernels(compiled)) <= 40
    assert_at_floor(compiled, TRANSFORMER, 8)
    assert_no_leaf_is_copied(compiled)


def test_bfloat16_is_at_the_floor():
    """XLA copies the average of one of 174 leaves, which the bytes include."""
    compiled = compile_step(rmsprop_jax.rmsprop(1e-3, accumulator_dtype="bfloat16"))
    assert len(kernels(compiled)) <= 0.7 * LEAVES
    assert_at_floor(compiled, TRANSFORMER, 2)
    assert len(copied(compiled)) <= 1


# Bytes of state per parameter, and the most kernels and instructions per leaf.
LOW_PRECISION = {
    ("bfloat16", ""): (2, 1.3, 90),
    ("bfloat16", "momentum"): (4, 1.3, 135),
    ("bfloat16", "centred"): (4, 1.3, 135),
    ("float8_e5m2", ""): (1, 2.5, 150),
    ("float8_e5m2", "momentum"): (3, 3.7, 225),
    ("float8_e5m2", "centred"): (3, 3.7, 225),
}


@pytest.mark.parametrize(("dtype", "option"), LOW_PRECISION)
def test_low_precision_is_at_the_floor_in_few_kernels_and_instructions(dtype, option):
    options = {"momentum": {"momentum": 0.9}, "centred": {"centered": True}}.get(option, {})
    state, most_kernels, most_instructions = LOW_PRECISION[dtype, option]
    optimizer = rmsprop_jax.rmsprop(1e-3, accumulator_dtype=dtype, **options)
    compiled = compile_step(optimizer, FEW_LEAVES)
    assert len(kernels(compiled)) <= most_kernels * len(FEW_LEAVES)
    assert instructions(compiled) <= most_instructions * len(FEW_LEAVES)
    assert_at_floor(compiled, FEW_LEAVES, state)


def test_8_bits_are_at_the_floor_in_few_kernels():
    compiled = compile_step(rmsprop_jax.rmsprop(1e-3, accumulator_dtype="float8_e5m2"))
    assert len(kernels(compiled)) <= 2.6 * LEAVES
    assert_at_floor(compiled, TRANSFORMER, 1, most=1.02)


OPTAX = [optax.rmsprop(1e-3), optax.adam(1e-3)]


@pytest.mark.parametrize("optimizer", OPTAX, ids=["rmsprop", "adam"])
def test_optax_takes_one_kernel_per_leaf(optimizer):
    """The baseline of the comparison. Adam has one more for each bias correction."""
    assert LEAVES <= len(kernels(compile_step(optimizer))) <= LEAVES + 2


# What the tests above would see.


def test_without_the_barrier_there_are_many_kernels(monkeypatch):
    """Each leaf then reads constants, and has its own kernel."""
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)
    assert len(kernels(compile_step(rmsprop_jax.rmsprop(1e-3)))) == LEAVES


def test_a_second_pass_moves_more_bytes():
    """A scale from the newest amax needs one."""

    def init(params):
        return [jnp.zeros(p.shape, jnp.float8_e5m2) for p in params]

    def step(g, codes):
        average = 0.9 * codes.astype(jnp.float32) + 0.1 * g**2
        codes = (average / jnp.max(average)).astype(jnp.float8_e5m2)
        return -g / jnp.sqrt(average + 1e-8), codes

    def update(gradients, state, params=None):
        updates, state = zip(*map(step, gradients, state), strict=True)
        return list(updates), list(state)

    compiled = compile_step(optax.GradientTransformation(init, update), ONE_LEAF)
    with pytest.raises(AssertionError):
        assert_at_floor(compiled, ONE_LEAF, 1)


def test_swapped_arrays_are_copied():
    """Two donated arrays that change places need a third."""

    def init(params):
        return params, params

    def update(gradients, state, params=None):
        return gradients, state[::-1]

    compiled = compile_step(optax.GradientTransformation(init, update), ONE_LEAF)
    with pytest.raises(AssertionError):
        assert_no_leaf_is_copied(compiled)


def test_the_benchmark_prints_its_table(tmp_path):
    text = printed("benchmarks/h100.py", "--variants", "bfloat16", cwd=tmp_path)
    assert "| bfloat16 | constant |" in text
