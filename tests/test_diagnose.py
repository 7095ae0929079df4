"""`second_moment` finds v in any format and wrapper; `diagnose` says what it means."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from support import reference
from support.layouts import STORAGES, mesh_of

from rmsprop_jax import (
    apply_updates,
    diagnose,
    dialects,
    rmsprop,
    scale_by_rms,
    scale_by_stddev,
    second_moment,
    sharding,
)

DECAY = 0.9
PARAMS = {"dense": {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)}}
GRADIENTS = {"dense": {"kernel": jnp.geomspace(0.1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)}}
ours = partial(rmsprop, 0.1, DECAY, eps=0.0)
WRAPPERS = {
    "alone": lambda tx: tx,
    "in a chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx, optax.identity()),
    "accumulating": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "if finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"dense": {"kernel": True, "bias": True}}),
    "partitioned": lambda tx: optax.partition({"all": tx}, "all"),
    "both": lambda tx: optax.chain(optax.apply_if_finite(optax.MultiSteps(tx, 1), 3)),
}
# How far sqrt(v) may deviate in each dtype.
CLOSE = {None: 1e-6, "bfloat16": 0.02, "float8_e5m2": 0.25}


def after(optimizer, steps=5, gradients=GRADIENTS, params=PARAMS):
    """The updates and the state after some steps."""
    update, state, updates = jax.jit(optimizer.update), optimizer.init(params), None
    for _ in range(steps):
        updates, state = update(gradients, state, params)
    return updates, state


def expected_v(g, steps=5):
    return reference.mean_square(np.stack([np.asarray(g, float)] * steps), DECAY)


def assert_v(found, dtype, gradients=GRADIENTS):
    assert jax.tree.structure(found) == jax.tree.structure(gradients)
    for v, g in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        assert v.dtype == jnp.float32
        np.testing.assert_allclose(np.sqrt(v), np.sqrt(expected_v(g)), rtol=CLOSE[dtype])


# second_moment.


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_v_in_each_storage_and_wrapper(dtype, wrapper):
    _, state = after(WRAPPERS[wrapper](ours(accumulator_dtype=dtype)))
    assert_v(second_moment(state), dtype)
    assert_v(jax.jit(second_moment)(state), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
def test_v_under_injected_hyperparameters(dtype):
    inject = optax.inject_hyperparams(rmsprop, static_args=("accumulator_dtype",))
    _, state = after(inject(0.1, DECAY, accumulator_dtype=dtype))
    assert_v(second_moment(state), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
def test_variance_of_a_centred_optimizer(dtype):
    rng = np.random.default_rng(0)
    g = rng.standard_normal((300, 50)).astype(np.float32)
    tx = scale_by_stddev(DECAY, accumulator_dtype=dtype)
    state = tx.init(g[0])
    for x in g:
        _, state = jax.jit(tx.update)(x, state)
    ratio = second_moment(state) / reference.variance(g.astype(float), DECAY)
    np.testing.assert_allclose(ratio, 1, atol={None: 1e-4}.get(dtype, 0.5))
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.03)


@pytest.mark.parametrize("name", dialects.DIALECTS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_second_moment_of_each_dialect(name, dtype):
    """In low precision it is that of float32, within rounding."""
    low_precision, float32 = (
        second_moment(after(dialects.DIALECTS[name](0.1, accumulator_dtype=x))[1])
        for x in (dtype, None)
    )
    # With constant gradients the variance is small compared to the rounding of their mean.
    tolerance = 0 if name not in ("graves", "dqn") else 0.05
    for a, b in zip(jax.tree.leaves(low_precision), jax.tree.leaves(float32), strict=True):
        np.testing.assert_allclose(a, b, rtol=2 * CLOSE[dtype], atol=tolerance)


@pytest.mark.parametrize("dtype", STORAGES)
def test_flax(dtype):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ours(accumulator_dtype=dtype), wrt=nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for _ in range(5):
        optimizer.update(model, gradients)
    found = second_moment(optimizer)
    np.testing.assert_allclose(found["kernel"][...], expected_v(1.0), rtol=2 * CLOSE[dtype])
    paths = set(diagnose(optimizer, nnx.state(model, nnx.Param), gradients))
    assert paths == {"kernel", "bias"}

    state = TrainState.create(apply_fn=None, params=PARAMS, tx=ours(accumulator_dtype=dtype))
    for _ in range(5):
        state = state.apply_gradients(grads=GRADIENTS)
    assert_v(second_moment(state), dtype)


@pytest.mark.parametrize("dtype", STORAGES)
def test_sharded(dtype):
    mesh = mesh_of(8)
    params = {"w": jnp.geomspace(1, 2, 64).reshape(16, 4)}
    optimizer = ours(accumulator_dtype=dtype)
    sharded = sharding.shard_over(params, mesh)
    shardings = sharding.state_shardings(optimizer, params, sharded)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    placed = jax.device_put(params, sharded)
    for _ in range(5):
        updates, state = jax.jit(optimizer.update, out_shardings=(sharded, shardings))(
            placed, state
        )
    assert_v(second_moment(state), dtype, params)
    assert second_moment(state)["w"].sharding.is_equivalent_to(sharded["w"], 2)
    _, alone = after(optimizer, gradients=params, params=params)
    found, expected = diagnose(state, placed, updates), diagnose(alone, params, updates)
    assert found.as_scalars() == pytest.approx(expected.as_scalars())


def test_several_optimizers_in_one_model():
    """Two of ours, and another one, whose parameters have None."""
    labels = {"a": "uncentred", "b": "centred", "c": "other", "d": {"e": "uncentred", "f": "other"}}
    optimizer = optax.partition(
        {"uncentred": ours(), "centred": ours(centered=True), "other": optax.sgd(0.1)}, labels
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(4), "d": {"e": 1.0, "f": 2.0}}
    _, state = after(optimizer, gradients=params, params=params)
    found = second_moment(state)
    assert (found["c"], found["d"]["f"]) == (None, None)
    np.testing.assert_allclose(found["a"], expected_v(1.0), rtol=1e-6)
    np.testing.assert_allclose(found["d"]["e"], expected_v(1.0), rtol=1e-6)
    assert found["b"].shape == (3,)
    assert set(diagnose(state, params)) == {"a", "b", "d/e"}


def test_stacked_models():
    """Made by vmap, or one copy per device: each has its own scale."""
    tx = scale_by_rms(DECAY, accumulator_dtype="float8_e5m2")
    g = jnp.array([[1e-6] * 50, [1e3] * 50])
    state = jax.vmap(tx.init)(g)
    for _ in range(30):
        _, state = jax.vmap(tx.update)(g, state)
    np.testing.assert_allclose(second_moment(state).mean(1), [1e-12, 1e6], rtol=0.1)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (optax.adam(0.1), "EmptyState, ScaleByAdamState"),
        (optax.sgd(0.1), "EmptyState"),
        (optax.rmsprop(0.1, centered=True), "ScaleByRStdDevState"),
    ],
)
def test_state_of_another_optimizer_is_rejected(optimizer, found):
    with pytest.raises(ValueError, match=f"an RMSprop of this package.*; found.*{found}"):
        second_moment(optimizer.init(PARAMS))
    with pytest.raises(ValueError, match="; found dict"):
        diagnose({"w": jnp.ones(3)}, PARAMS)


def test_two_averages_of_one_parameter_are_rejected():
    with pytest.raises(ValueError, match="two averages of squares for one parameter"):
        second_moment(optax.chain(ours(), ours()).init(PARAMS))


# diagnose.


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_numbers(eps_in_sqrt):
    updates, state = after(ours())
    v = {name: expected_v(g) for name, g in GRADIENTS["dense"].items()}
    eps = 0.1
    found = jax.jit(partial(diagnose, eps=eps, eps_in_sqrt=eps_in_sqrt))(state, PARAMS, updates)
    assert list(found) == ["dense/bias", "dense/kernel"]
    for name in ("kernel", "bias"):
        diagnosis, root, u = found[f"dense/{name}"], np.sqrt(v[name]), updates["dense"][name]
        of_param = np.sqrt(np.mean(np.square(PARAMS["dense"][name])))
        assert diagnosis.gradient_rms == pytest.approx(np.sqrt(v[name].mean()))
        percentiles = (diagnosis.root_v_5, diagnosis.root_v_50, diagnosis.root_v_95)
        np.testing.assert_allclose(percentiles, np.quantile(root, [0.05, 0.5, 0.95]), rtol=1e-5)
        larger = eps > (v[name] if eps_in_sqrt else root)
        assert diagnosis.eps_share == pytest.approx(larger.mean())
        assert diagnosis.update_rms == pytest.approx(np.sqrt(np.mean(np.square(u))))
        assert diagnosis.update_over_param == pytest.approx(float(diagnosis.update_rms) / of_param)
        assert (diagnosis.lost_share, diagnosis.zero_share, diagnosis.top_share) == (
            None,
            None,
            None,
        )
        assert diagnosis.nonfinite == 0


def test_percentiles_of_a_large_leaf():
    """Computed from a sample that is not from one column."""
    v = np.geomspace(1e-6, 1, 1024, dtype=np.float32)[None, :] * np.ones((512, 1), np.float32)
    seen = diagnose(optax.ScaleByRmsState(jnp.asarray(v)), jnp.asarray(v))[""]
    percentiles = np.log([seen.root_v_5, seen.root_v_50, seen.root_v_95])
    np.testing.assert_allclose(
        percentiles, np.log(np.quantile(np.sqrt(v), [0.05, 0.5, 0.95])), atol=0.05
    )


def test_codes_at_zero_and_at_the_top():
    tx = scale_by_rms(0.5, accumulator_dtype="float8_e5m2")
    g = jnp.array([0.0] * 3 + [1.0] * 5)
    state = tx.init(g)
    for scale in (1.0, 1.0, 1.0, 1e4):
        _, state = tx.update(scale * g, state)
    seen = diagnose(state, g)[""]
    assert (float(seen.zero_share), float(seen.top_share)) == (3 / 8, 5 / 8)


def test_leaves_without_an_average_are_left_out():
    params = {"w": jnp.ones(3), "n": 3, "frozen": None, "empty": jnp.ones((0, 2)), "one": 2.0}
    gradients = {"w": jnp.ones(3), "n": None, "frozen": None, "empty": jnp.ones((0, 2)), "one": 1.0}
    updates, state = after(ours(), gradients=gradients, params=params)
    assert list(diagnose(state, params, updates)) == ["one", "w"]


def test_complex_parameters():
    params = {"w": jnp.array([3 + 4j, 3 + 4j])}
    for optimizer in (ours(), dialects.pytorch(0.1, DECAY)):
        updates, state = after(optimizer, gradients=params, params=params)
        found = diagnose(state, params, updates)
        squares = sum(float(x.gradient_rms) ** 2 for x in found.values())
        assert squares == pytest.approx(expected_v(5.0), rel=1e-5)


def test_scalars_for_a_logger():
    updates, state = after(ours())
    scalars = diagnose(state, PARAMS, updates).as_scalars()
    assert all(isinstance(x, float) for x in scalars.values())
    assert scalars["dense/bias/gradient_rms"] == pytest.approx(np.sqrt(expected_v(1.0)))
    assert "dense/bias/lost_share" not in scalars


def test_prints_as_a_table():
    updates, state = after(ours())
    head, *rows = str(diagnose(state, PARAMS, updates)).splitlines()
    assert [row.split()[0] for row in rows] == ["dense/bias", "dense/kernel"]
    assert len({len(row) for row in (head, *rows)}) == 1
    assert f"{np.sqrt(expected_v(1.0)):.2g}" in rows[0]


@pytest.mark.parametrize(
    ("params", "updates", "message"),
    [
        ({"dense": {"kernel": jnp.ones((3, 4))}}, None, "params must have a leaf at 'dense/bias'"),
        (PARAMS, {"dense": {"bias": jnp.ones(4)}}, "updates must have a leaf at 'dense/kernel'"),
        (jax.tree.map(jnp.ravel, PARAMS), None, r"params at 'dense/kernel' has shape \(12,\)"),
    ],
)
def test_another_tree_is_rejected(params, updates, message):
    with pytest.raises(ValueError, match=message):
        diagnose(ours().init(PARAMS), params, updates)


@pytest.mark.parametrize(("argument", "value"), [("eps", -1), ("eps", "x"), ("eps_in_sqrt", 3)])
def test_bad_arguments_are_rejected(argument, value):
    with pytest.raises((ValueError, TypeError), match=argument):
        diagnose(ours().init(PARAMS), PARAMS, **{argument: value})


# Causes of bad training, and where the table shows each.


def trained(optimizer, gradient, steps, params, apply=optax.apply_updates):
    """The diagnosis after ``steps`` steps with the gradients ``gradient(step)``."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradient(step), state, params)
        params = apply(params, updates)
    return diagnose(state, params, updates)[""]


def test_first_steps_are_long():
    """At decay 0.999 the first is 32 learning rates long, with bias correction it is one."""
    params = jnp.ones(100)
    first, corrected = (
        trained(rmsprop(0.01, 0.999, bias_correction=correction), lambda _: params, 1, params)
        for correction in (False, True)
    )
    assert float(first.update_rms) == pytest.approx(0.01 * np.sqrt(1000), rel=1e-3)
    assert float(corrected.update_rms) == pytest.approx(0.01, rel=1e-3)


def test_centred_with_constant_gradients():
    """The variance falls to zero, and the update grows until only eps limits it."""
    seen = trained(rmsprop(0.01, centered=True), lambda _: jnp.ones(10), 300, jnp.ones(10))
    assert float(seen.root_v_50) < 1e-5
    assert float(seen.eps_share) == 1
    assert float(seen.update_rms) > 0.01 * 1000


@pytest.mark.parametrize(("eps_in_sqrt", "size", "share"), [(True, 1e-5, 1), (False, 1e-5, 0)])
def test_eps_above_the_gradients(eps_in_sqrt, size, share):
    """1e-8 inside the root acts like 1e-4 outside."""
    optimizer = rmsprop(0.01, eps_in_sqrt=eps_in_sqrt)
    updates, state = after(optimizer, 50, jnp.full(10, size), jnp.ones(10))
    seen = diagnose(state, jnp.ones(10), updates, eps_in_sqrt=eps_in_sqrt)[""]
    assert float(seen.eps_share) == share
    assert (float(seen.update_rms) < 0.002) == bool(share)


def test_bfloat16_parameters_do_not_move():
    """Unless `apply_updates` adds the updates."""
    params = jnp.ones(1000, jnp.bfloat16)
    seen = trained(rmsprop(1e-4), lambda _: params, 3, params)
    assert float(seen.lost_share) == 1
    moved = apply_updates(params, jnp.full(1000, -1e-4), 0)
    assert 0 < float((moved != 1).mean()) < 0.2


def test_nan_stays():
    """Unless `apply_if_finite` skips the step."""

    def gradient(step):
        return jnp.ones(10).at[3].set(jnp.nan if step == 2 else 1.0)

    seen = trained(rmsprop(0.01), gradient, 10, jnp.ones(10))
    assert int(seen.nonfinite) == 3  # of v, parameter and update
    guarded = optax.apply_if_finite(rmsprop(0.01), 5)
    assert int(trained(guarded, gradient, 10, jnp.ones(10)).nonfinite) == 0


def test_decay_that_rounds_to_one_is_rejected():
    inject = optax.inject_hyperparams(rmsprop)(0.01, decay=0.999)
    params = jnp.ones(3, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"in bfloat16, 0\.999 is 1.*hyperparam_dtype"):
        inject.init(params)
