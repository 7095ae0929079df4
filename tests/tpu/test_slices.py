"""Sharded state on slices of a TPU pod, as compiled for TPU. Extra `tpu`.

Compiled ahead of time; nothing is run.
"""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import slices, tpu
from support.scripts import printed

import rmsprop_jax
from rmsprop_jax import sharding

# Bytes per element of an average.
STORAGES = {"float32": 4, "bfloat16": 2, "float8_e5m2": 1}
SLICES = {"v5e:2x4": 8, "v5e:16x16": 256}

ONE_NUMBER = {"f32[]", "f32[1]"}

axis_types = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)


def test_models_have_the_published_numbers_of_parameters():
    """Those of TinyLlama and Llama 2."""
    counts = [slices.count(slices.parameters(model)) for model in slices.MODELS.values()]
    assert counts == [1_100_048_384, 6_738_415_616]


@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_state_shrinks_with_the_chips_and_is_not_moved(dtype, topology):
    """`slices.measure` raises if the program holds anything but the shards."""
    model = slices.MODELS[1]._replace(layers=1)
    measured = slices.measure(model, tpu.slice_mesh(topology), dtype)

    params = slices.parameters(model)
    shard = STORAGES[dtype] * slices.count(params) / SLICES[topology]
    assert shard <= measured.state <= 1.01 * shard
    assert measured.state <= measured.padded <= 1.1 * measured.state

    scales = len(jax.tree.leaves(params)) if dtype == "float8_e5m2" else 0
    assert {c.kind for c in measured.collectives} == ({"all-reduce"} if scales else set())
    reduced = [shape for c in measured.collectives for shape in c.shapes]
    assert len(reduced) == scales
    assert set(reduced) <= ONE_NUMBER


# ZeRO-1: replicated parameters, sharded state, reduce-scattered gradients.

SHAPES = {"w": (512, 1024), "v": (1024, 512)}
SIZE = sum(map(math.prod, SHAPES.values()))
BATCH = (256, 512)


def compile_zero(axis_type, dtype, constrained=True, shard_state=True):
    """A training step on eight chips, with an average and a momentum in the state."""
    mesh = tpu.slice_mesh("v5e:2x4", axis_type=axis_type)
    params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in SHAPES.items()}
    optimizer = rmsprop_jax.rmsprop(1e-3, momentum=0.9, accumulator_dtype=dtype)
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    sharded = sharding.shard_over(params, mesh)
    state_shardings = sharding.state_shardings(
        optimizer, params, sharded if shard_state else replicated
    )

    def step(params, state, x):
        def loss(params):
            return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - x) ** 2)

        gradients = jax.grad(loss)(params)
        if constrained:
            gradients = sharding.with_sharding_constraint(gradients, sharded)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    arguments = (
        tpu.placed(params, replicated),
        tpu.placed(jax.eval_shape(optimizer.init, params), state_shardings),
        tpu.placed(
            jax.ShapeDtypeStruct(BATCH, jnp.float32), NamedSharding(mesh, PartitionSpec("data"))
        ),
    )
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(replicated, state_shardings))
        return jitted.lower(*arguments).compile()


def shapes(compiled, kind):
    """The sorted shapes in all collectives of a kind, without scalars."""
    found = [shape for c in tpu.collectives(compiled) if c.kind == kind for shape in c.shapes]
    return sorted(shape for shape in found if shape not in ONE_NUMBER)


# Each parameter once.
EACH_ONCE = ["f32[1024,512]", "f32[512,1024]"]
KINDS = {"all-gather", "all-reduce", "reduce-scatter"}


@axis_types
@pytest.mark.parametrize(("dtype", "state_bytes"), [("float32", 4 + 4), ("float8_e5m2", 1 + 2)])
def test_zero_moves_gradients_and_parameters_and_never_the_state(dtype, state_bytes, axis_type):
    compiled = compile_zero(axis_type, dtype)
    assert {c.kind for c in tpu.collectives(compiled)} <= KINDS
    assert shapes(compiled, "reduce-scatter") == EACH_ONCE
    # More would mean that the average or the momentum is gathered.
    assert shapes(compiled, "all-gather") == EACH_ONCE
    # What is gathered is the parameters after the addition, not the updates.
    gathers = [c for c in tpu.collectives(compiled) if c.kind == "all-gather"]
    assert all(c.source.endswith("/add") for c in gathers)
    # The amaxes of 8-bit leaves are scalars.
    assert shapes(compiled, "all-reduce") == []

    # Parameters, an eighth of the state and of the batch; in 8 bits also a vector of amaxes, one of
    # scales and two step counters, of 512 bytes each.
    expected = 4 * SIZE + state_bytes * SIZE / 8 + 4 * math.prod(BATCH) / 8
    scalars = 4 * 512 if dtype == "float8_e5m2" else 0
    assert compiled.memory_analysis().argument_size_in_bytes == expected + scalars


@axis_types
def test_the_tests_of_zero_can_fail(axis_type):
    """A replicated state: updated averages are gathered too, and each chip holds all of it."""
    compiled = compile_zero(axis_type, "float32", shard_state=False)
    assert shapes(compiled, "all-gather") == sorted(3 * EACH_ONCE)
    assert compiled.memory_analysis().argument_size_in_bytes > (4 + 8) * SIZE


def test_gradients_are_all_reduced_without_a_constraint():
    """On an Explicit mesh. With Auto axes the compiler sees that only shards are needed."""
    compiled = compile_zero(AxisType.Explicit, "float32", constrained=False)
    assert shapes(compiled, "all-reduce") == EACH_ONCE
    assert shapes(compiled, "reduce-scatter") == []


def test_the_benchmark_prints_its_table(tmp_path):
    flags = ["--billions", "1", "--layers", "1", "--topologies", "v5e:16x16"]
    text = printed("benchmarks/slices.py", *flags, cwd=tmp_path)
    assert text.count("| v5e:16x16 |") == 3
