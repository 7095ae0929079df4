"""`apply_updates`: stochastic rounding for bfloat16 parameters, Optax's numbers for all others."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.layouts import assert_same_bits

from rmsprop_jax import apply_updates


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1])
def test_bfloat16_parameters_move_on_average(size):
    """By the sum of the updates, where rounding to nearest does not move them at all."""
    steps, width = 500, 4000
    params, nearest = (jnp.full(width, 1.0, jnp.bfloat16) for _ in range(2))
    updates = size * np.random.default_rng(0).uniform(0, 2, (steps, width)).astype(np.float32)
    add = jax.jit(apply_updates)
    for step, u in enumerate(updates):
        params = add(params, u, step)
        nearest = optax.apply_updates(nearest, u)
    expected = 1 + updates.astype(float).sum(0)
    moved = np.asarray(params, float)
    assert params.dtype == jnp.bfloat16
    np.testing.assert_allclose(moved.mean(), expected.mean(), rtol=1e-3)
    if size == 1e-5:
        assert (nearest == 1).all()
        assert moved.mean() > 1.004


def test_parameters_of_other_dtypes_are_optaxs():
    params = {
        "a": jnp.ones(3),
        "b": jnp.ones(3, jnp.float16),
        "c": 1.0,
        "d": None,
        "e": jnp.ones(2, complex),
    }
    updates = {
        "a": jnp.full(3, 0.1),
        "b": jnp.full(3, 1e-3, jnp.float16),
        "c": 0.5,
        "d": None,
        "e": jnp.ones(2, complex),
    }
    chex.assert_trees_all_equal(
        apply_updates(params, updates), optax.apply_updates(params, updates)
    )
    chex.assert_trees_all_equal(
        apply_updates(params, updates, 3), optax.apply_updates(params, updates)
    )


def test_parameters_have_the_same_bits_on_eight_devices():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    params = jnp.linspace(-2, 2, 64, dtype=jnp.bfloat16).reshape(8, 8)
    updates = jnp.full((8, 8), 1e-3)
    one = jax.jit(apply_updates)(params, updates, 5)
    for spec in (("a",), (None, "a")):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        eight = jax.jit(apply_updates)(*jax.device_put((params, updates), sharding), 5)
        assert eight.sharding.is_equivalent_to(sharding, 2)
        assert_same_bits(one, eight)


def test_derivative_of_apply_updates_is_optaxs():
    params, updates = jnp.ones(3, jnp.bfloat16), jnp.full(3, 1e-3)

    def total(apply):
        return lambda p, u: (apply(p, u).astype(jnp.float32) * jnp.arange(3)).sum()

    ours = jax.grad(total(lambda p, u: apply_updates(p, u, 1)), argnums=(0, 1))(params, updates)
    chex.assert_trees_all_equal(
        ours, jax.grad(total(optax.apply_updates), argnums=(0, 1))(params, updates)
    )


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (None, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        ("a", TypeError),
        (True, TypeError),
        (np.ones(2, int), ValueError),
        (jax.random.key(0), TypeError),
    ],
)
def test_bad_step_is_rejected(step, error):
    params = {"layer": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(error, match="step"):
        apply_updates(params, params, step)


def test_updates_of_other_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"updates\['w'\]"):
        apply_updates({"w": jnp.ones(2)}, {"w": jnp.ones(3)})


def test_steps_beyond_32_bits():
    params = jnp.ones(1000, jnp.bfloat16)
    moved = [
        apply_updates(params, params * 1e-3, step)
        for step in (0, 2**31, 2**32 + 5, np.int64(2**40))
    ]
    assert len({np.asarray(x).tobytes() for x in moved}) > 2


@given(st.floats(width=32), st.integers(0, 2**31 - 1))
def test_bfloat16_parameters_round_to_a_neighbour(x, step):
    """Down or up. Exact values, NaN and infinity stay as they are."""
    (new,) = np.asarray(apply_updates(jnp.zeros(1, jnp.bfloat16), jnp.array([x]), step), float)
    bits = np.array([x], np.float32).view(np.uint32)
    if not np.isfinite(x):
        np.testing.assert_equal(new, x)
    else:
        toward_zero = (bits & np.uint32(0xFFFF0000)).view(np.float32)[0]
        away = ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)[0]
        assert new in ({x} if toward_zero == x else {toward_zero, away})
