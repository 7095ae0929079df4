"""Rows with a zero gradient do not change. TensorFlow's own sparse updates: tests/frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.tree_utils import tree_get

from rmsprop_jax import dialects, rmsprop, second_moment, untouched_rows

ROWS, STEPS = 6, 12
OPTIMIZERS = {
    "rmsprop": rmsprop(0.1),
    "centered": rmsprop(0.1, centered=True),
    "momentum": rmsprop(0.1, momentum=0.9, nesterov=True),
    "decaying": rmsprop(0.1, momentum=0.9, weight_decay=0.1),
    "tensorflow_v1": dialects.tensorflow_v1(0.1, momentum=0.9, centered=True),
    "pytorch": dialects.pytorch(0.1, momentum=0.9, weight_decay=0.1),
    "fastai": dialects.fastai(0.1, mom=0.9, wd=0.1),
    "optax": optax.rmsprop(0.1, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def sparse_gradients(*shape, seed=0):
    """Each row has a gradient in a third of the steps, with some elements zero."""
    rng = np.random.default_rng(seed)
    used = rng.random((STEPS, ROWS)) < 1 / 3
    used[0] = np.arange(ROWS) < ROWS - 1
    g = rng.standard_normal((STEPS, ROWS, *shape)).astype(np.float32)
    if shape:
        g[..., 0] *= rng.random(g[..., 0].shape) < 0.5
    return np.where(used.reshape(STEPS, ROWS, *(1,) * len(shape)), g, 0), used


def steps(optimizer, gradients, params):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@every_optimizer
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_row_is_updated_as_if_only_the_steps_that_use_it_existed(shape, optimizer):
    gradients, used = sparse_gradients(*shape)
    start = jnp.ones((ROWS, *shape))
    params, state = steps(untouched_rows(optimizer), gradients, start)
    for i in range(ROWS):
        alone = [g[i : i + 1] for g, u in zip(gradients, used, strict=True) if u[i]]
        expected, expected_state = steps(optimizer, alone, start[i : i + 1])
        np.testing.assert_allclose(params[i], expected[0], rtol=1e-5)
        for name in ("nu", "mu", "var", "trace"):
            ours, theirs = tree_get(state, name), tree_get(expected_state, name)
            if theirs is not None:
                np.testing.assert_allclose(ours[i], theirs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"embedding": True, "dense": False, "scale": False},
        lambda tree: {k: k == "embedding" for k in tree},
    ],
    ids=["tree", "function"],
)
def test_mask_selects_the_embeddings(mask):
    gradients, _ = sparse_gradients(3)
    gradients = [{"embedding": g, "dense": {"w": g}, "scale": g.mean()} for g in gradients]
    start = {"embedding": jnp.ones((ROWS, 3)), "dense": {"w": jnp.ones((ROWS, 3))}, "scale": 1.0}
    optimizer = rmsprop(0.1, momentum=0.9)
    params, _ = steps(untouched_rows(optimizer, mask), gradients, start)
    dense, _ = steps(optimizer, gradients, start)
    alone = [g["embedding"] for g in gradients]
    embedding, _ = steps(untouched_rows(optimizer), alone, start["embedding"])
    np.testing.assert_array_equal(params["embedding"], embedding)
    np.testing.assert_array_equal(params["dense"]["w"], dense["dense"]["w"])
    np.testing.assert_array_equal(params["scale"], dense["scale"])
    assert abs(embedding - dense["embedding"]).max() > 0.1


def test_leaves_without_a_gradient_do_not_change():
    params = {"w": jnp.ones((2, 2)), "frozen": jnp.ones(2), "n": 3, "none": None}
    gradients = {"w": jnp.eye(2).at[1].set(0), "frozen": None, "n": None, "none": None}
    optimizer = untouched_rows(rmsprop(0.1, centered=True, momentum=0.9))
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    assert updates["frozen"] is updates["n"] is updates["none"] is None
    np.testing.assert_array_equal(updates["w"][1], 0)
    assert updates["w"][0, 0] != 0


def test_nan_gradient_counts_as_nonzero():
    optimizer = untouched_rows(rmsprop(0.1))
    w = jnp.ones((2, 2))
    updates, _ = optimizer.update(w.at[0].set(jnp.nan).at[1].set(0), optimizer.init(w), w)
    assert np.isnan(updates[0]).all()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.apply_if_finite(tx, 3),
        optax.with_extra_args_support,
    ],
    ids=["chain", "masked", "apply_if_finite", "extra_args"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_wrappers(wrapped, inside):
    """Around `untouched_rows` or inside it."""
    optimizer = rmsprop(0.1, momentum=0.9)
    tx = untouched_rows(wrapped(optimizer)) if inside else wrapped(untouched_rows(optimizer))
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    gradients = jax.tree.map(lambda w: w.at[1].set(0) / 2, params)
    _, state = steps(tx, [params, gradients], params)
    nu = second_moment(state)["w"]
    assert nu[1, 0] == pytest.approx(0.1)
    assert nu[0, 0] == pytest.approx(0.1 * 0.9 + 0.1 * 0.25)


def test_inject_hyperparams():
    def make(learning_rate, decay):
        return untouched_rows(rmsprop(learning_rate, decay))

    w, g = jnp.ones((3, 2)), jnp.ones((3, 2)).at[1].set(0)
    injected, _ = steps(optax.inject_hyperparams(make)(learning_rate=0.1, decay=0.9), [w, g], w)
    np.testing.assert_allclose(injected, steps(make(0.1, 0.9), [w, g], w)[0], rtol=1e-6)


def test_bfloat16_average_of_an_untouched_row_is_kept_bit_for_bit():
    optimizer = untouched_rows(rmsprop(0.1, 0.999, momentum=0.9, accumulator_dtype="bfloat16"))
    w = jnp.ones((2, 400))
    _, state = steps(optimizer, [w], w)
    _, later = optimizer.update(w.at[1].set(0), state, w)
    for name in ("nu", "trace"):
        np.testing.assert_array_equal(tree_get(later, name)[1], tree_get(state, name)[1])
        assert (tree_get(later, name)[0] != tree_get(state, name)[0]).any()


def test_8_bits_are_rejected():
    optimizer = untouched_rows(rmsprop(0.1, accumulator_dtype="float8_e5m2"))
    with pytest.raises(ValueError, match=r"untouched_rows needs .* 8-bit .*bfloat16"):
        optimizer.init(jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (optax.MultiSteps(rmsprop(0.1), 2).gradient_transformation(), "inside optax.MultiSteps"),
        (optax.adafactor(0.1), r"arrays like the parameters, got one of shape .*\(256, 200\)"),
    ],
    ids=["MultiSteps", "adafactor"],
)
def test_states_without_rows_are_rejected(wrapped, message):
    optimizer = untouched_rows(wrapped)
    w = jnp.ones((256, 200))
    with pytest.raises(ValueError, match=message):
        optimizer.update(w, optimizer.init(w), w)


def test_multi_steps_around_it():
    optimizer = optax.MultiSteps(untouched_rows(rmsprop(0.1)), 2).gradient_transformation()
    params, _ = steps(optimizer, [jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])], W3)
    np.testing.assert_allclose(params, 1 - 0.1 / np.sqrt(0.1) * np.array([1, 1, 0]), rtol=1e-5)


W3 = jnp.ones(3)


def test_argument_that_is_not_an_optimizer_is_rejected():
    with pytest.raises(TypeError, match=r"optimizer must be an Optax transformation, got 0\.1"):
        untouched_rows(0.1)


@pytest.mark.parametrize("mask", [{"v": True}, {"w": {"c": True}}, (True,)])
def test_mask_like_another_tree_is_rejected(mask):
    optimizer = untouched_rows(rmsprop(0.1), mask)
    params = {"w": W3}
    with pytest.raises(ValueError, match="mask must be True or False, or a tree of them"):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("mask", [1, "embedding", {"w": 1}])
def test_mask_that_is_not_of_booleans_is_rejected(mask):
    with pytest.raises(TypeError, match="mask must be True or False"):
        untouched_rows(rmsprop(0.1), mask)
