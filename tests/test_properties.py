"""Properties that hold for all inputs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmsprop_jax import rmsprop

# Where the square of a float32 is a normal float32.
NORMAL = st.floats(2.0**-50, 2.0**50, width=32)
GRADIENT = st.just(0.0) | NORMAL | NORMAL.map(lambda x: -x)
DECAYS = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def gradients(steps=5):
    """The gradients of one leaf in some steps."""
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, (steps, *shape), elements=GRADIENT))


@st.composite
def options(draw, **fixed):
    """Any valid options of rmsprop."""
    momentum = draw(st.none() | st.sampled_from([0.0, 0.5, 0.9]))
    drawn = {
        "decay": draw(DECAYS),
        "eps": draw(st.sampled_from([0.0, 1e-8, 1e-2])),
        "initial_scale": draw(st.sampled_from([0.0, 1.0])),
        "eps_in_sqrt": draw(st.booleans()),
        "centered": draw(st.booleans()),
        "momentum": momentum,
        "nesterov": momentum is not None and draw(st.booleans()),
        "bias_correction": draw(st.booleans()),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
    }
    return drawn | fixed


def run(optimizer, gs, update=None):
    """All updates, for parameters that stay at one."""
    update = update or optimizer.update
    params = jnp.ones(gs[0].shape, gs[0].dtype)
    state, updates = optimizer.init(params), []
    for g in gs:
        u, state = update(jnp.asarray(g), state, params)
        updates.append(u)
    return np.stack(updates), state


def scale_of(updates, axis=0):
    """The size that rounding is relative to: the largest update of each element."""
    return np.abs(updates).max(axis=axis, initial=np.finfo(np.float32).tiny)


def rounding(kwargs):
    """How far rounding may separate two programs of one formula: 1 - decay**t loses digits."""
    lost = 2.0**-24 / (1 - kwargs["decay"]) if kwargs["bias_correction"] else 0.0
    return 2e-6 + lost


@given(gradients(steps=2), options(), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_shape_and_dtype_are_kept(gs, kwargs, dtype):
    gs = np.clip(gs, -6e4, 6e4)
    updates, state = run(rmsprop(0.1, **kwargs), gs.astype(jnp.dtype(dtype)))
    assert updates.shape == gs.shape
    assert updates.dtype == jnp.dtype(dtype)
    averages = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32]
    chex.assert_trees_all_equal_shapes(*averages, jnp.ones(gs.shape[1:]))
    assert {leaf.dtype for leaf in averages} == {jnp.dtype(jnp.float32)}


@given(gradients(), options())
def test_updates_are_finite(gs, kwargs):
    updates, _ = run(rmsprop(0.1, **kwargs), gs)
    assert np.isfinite(updates).all()


@given(gradients(), options(centered=False))
def test_jit_equals_eager(gs, kwargs):
    optimizer = rmsprop(0.1, **kwargs)
    eager, state = run(optimizer, gs)
    jitted, jitted_state = run(optimizer, gs, jax.jit(optimizer.update))
    assert (abs(jitted - eager) <= rounding(kwargs) * scale_of(eager)).all()
    chex.assert_trees_all_close(jitted_state[0], state[0], rtol=2e-6)


@given(st.integers(0, 2**32 - 1), options(centered=True, eps=1e-2))
def test_jit_equals_eager_when_centred(seed, kwargs):
    """With gradients of similar size: if they differ a billionfold, s is only rounding noise."""
    gs = np.random.default_rng(seed).standard_normal((5, 8)).astype(np.float32)
    kwargs["decay"] = max(kwargs["decay"], 0.5)
    optimizer = rmsprop(0.1, **kwargs)
    eager, _ = run(optimizer, gs)
    jitted, _ = run(optimizer, gs, jax.jit(optimizer.update))
    assert (abs(jitted - eager) <= 5 * rounding(kwargs) * scale_of(eager)).all()


@given(
    hnp.arrays(np.float32, (4, 3, 5), elements=GRADIENT),
    options(centered=False),
    st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3),
)
def test_vmap_equals_a_loop(gs, kwargs, rates):
    """Three models with different learning rates, together or one by one."""

    @jax.jit
    def updates(rate, gs):
        optimizer = rmsprop(rate, **kwargs)
        params = jnp.ones_like(gs[0])

        def step(state, g):
            u, state = optimizer.update(g, state, params)
            return state, u

        return jax.lax.scan(step, optimizer.init(params), gs)[1]

    rates = jnp.asarray(rates, jnp.float32)
    together = np.asarray(jax.vmap(updates, in_axes=(0, 1), out_axes=1)(rates, jnp.asarray(gs)))
    one_by_one = np.stack([updates(rates[i], jnp.asarray(gs[:, i])) for i in range(3)], axis=1)
    assert (abs(together - one_by_one) <= rounding(kwargs) * scale_of(one_by_one)).all()


@pytest.mark.parametrize("momentum", [None, 0.9])
@given(
    hnp.arrays(
        np.float32, (4, 5), elements=st.floats(-1, 1, width=32).map(lambda x: np.float32(x * 1000))
    ),
    st.integers(-30, 30),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_scale_invariance(momentum, gs, k, centered, eps_in_sqrt, bias_correction):
    """Without eps, gradients times 2^k give the same updates bit for bit."""
    size = abs(gs[gs != 0])
    assume(size.size == 0 or size.min() > 1e-3)
    optimizer = rmsprop(
        0.1, eps=0.0, centered=centered, eps_in_sqrt=eps_in_sqrt, momentum=momentum,
        bias_correction=bias_correction,
    )  # fmt: skip
    updates, _ = run(optimizer, gs)
    scaled, _ = run(optimizer, gs * np.float32(2.0**k))
    np.testing.assert_array_equal(scaled, updates)


@given(gradients(steps=8), DECAYS, st.sampled_from([0.0, 1e-8, 1.0]), st.booleans())
def test_update_is_bounded(gs, decay, eps, eps_in_sqrt):
    """|update| <= lr / sqrt(1 - decay): the average includes the newest square."""
    rate = 0.1
    updates, _ = run(rmsprop(rate, decay, eps, eps_in_sqrt=eps_in_sqrt), gs)
    assert (abs(updates) <= rate / np.sqrt(1 - decay) * (1 + 1e-5)).all()


@given(hnp.arrays(np.float32, (5, 4), elements=GRADIENT), options(weight_decay=0.0))
def test_zero_gradient_moves_nothing(gs, kwargs):
    """Whatever the gradients of the other elements are."""
    gs[:, 2] = 0
    updates, _ = run(rmsprop(0.1, **kwargs), gs)
    np.testing.assert_array_equal(updates[:, 2], 0)
