"""With Optax's other transformations, under JAX's, and as the optimizer of Flax and Equinox."""

import dataclasses
from functools import partial

import chex
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from optax import contrib, tree_utils
from support.layouts import STORAGES

import rmsprop_jax
from rmsprop_jax import rmsprop

OPTIONS = [
    {},
    {"centered": True},
    {"momentum": 0.9, "nesterov": True},
    {"eps_in_sqrt": False, "bias_correction": True},
    # At the first step the corrected variance is zero: eps alone bounds it.
    {"centered": True, "eps": 0.1, "momentum": 0.9, "bias_correction": True, "weight_decay": 0.1},
]
all_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def tree():
    return {"w": jnp.linspace(-1, 2, 6).reshape(2, 3), "b": [jnp.ones(3), jnp.array(0.5)]}


def loss(params):
    return sum(((leaf - 3) ** 2).sum() for leaf in jax.tree.leaves(params))


def train(optimizer, params=None, steps=5, update=None):
    """Parameters and state after some steps on `loss`."""
    params = tree() if params is None else params
    state = optimizer.init(params)
    update = update or optimizer.update
    for _ in range(steps):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, rtol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=rtol)


# Optax's own transformations.


@all_options
def test_chain(options):
    """The update is that of the clipped gradient."""
    clip = optax.clip_by_global_norm(0.1)
    chained = optax.chain(clip, rmsprop(0.1, **options))
    updates, _ = chained.update(tree(), chained.init(tree()), tree())
    clipped, _ = clip.update(tree(), clip.init(tree()))
    alone = rmsprop(0.1, **options)
    assert_close(updates, alone.update(clipped, alone.init(tree()), tree())[0])


@all_options
def test_named_chain(options):
    named = optax.named_chain(("clip", optax.clip(1e6)), ("rmsprop", rmsprop(0.1, **options)))
    params, state = train(named)
    expected, expected_state = train(rmsprop(0.1, **options))
    assert_close(params, expected)
    assert_close(state["rmsprop"], expected_state)


@all_options
def test_masked(options):
    """Integer leaves are left out, as the error message advises."""
    params = tree() | {"steps": jnp.arange(3)}
    mask = jax.tree.map(lambda p: bool(jnp.issubdtype(p.dtype, jnp.floating)), params)
    optimizer = optax.masked(rmsprop(0.1, **options), mask)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    alone = rmsprop(0.1, **options)
    expected, _ = alone.update(tree(), alone.init(tree()), tree())
    assert_close({k: updates[k] for k in expected}, expected)
    np.testing.assert_array_equal(updates["steps"], params["steps"])


@all_options
def test_partition(options):
    optimizer = optax.partition(
        {"train": rmsprop(0.1, **options), "freeze": optax.set_to_zero()},
        {"w": "train", "b": "freeze"},
    )
    params, _ = train(optimizer)
    expected, _ = train(rmsprop(0.1, **options), {"w": tree()["w"]})
    assert_close(params, {"w": expected["w"], "b": tree()["b"]})


@all_options
def test_multi_steps(options):
    """Two gradients make one step with their mean."""
    optimizer = optax.MultiSteps(rmsprop(0.1, **options), every_k_schedule=2)
    params, state = tree(), optimizer.init(tree())
    for factor in (0.5, 1.5, 0.0, 2.0):
        gradients = jax.tree.map(lambda g, f=factor: f * g, jax.grad(loss)(params))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(params, train(rmsprop(0.1, **options), steps=2)[0])


@all_options
def test_apply_if_finite(options):
    """A NaN leaves parameters and state as they were."""
    optimizer = optax.apply_if_finite(rmsprop(0.1, **options), max_consecutive_errors=3)
    params, state = train(optimizer)
    bad = tree() | {"w": jnp.full((2, 3), jnp.nan)}
    updates, after = optimizer.update(bad, state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@all_options
@pytest.mark.parametrize("jit", [False, True])
def test_inject_hyperparams(options, jit):
    """Numbers and schedules are in the state; changing one there changes the next step."""
    schedule = optax.linear_schedule(0.1, 0.02, 4)
    optimizer = optax.inject_hyperparams(rmsprop)(learning_rate=schedule, **options)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    params, state = train(optimizer, update=update)
    expected, _ = train(rmsprop(schedule, **options))
    assert_close(params, expected)

    state.hyperparams["decay"] = jnp.array(0.5)
    changed, _ = update(jax.grad(loss)(params), state, params)
    by_hand = rmsprop(optax.constant_schedule(schedule(5)), **options | {"decay": 0.5})
    _, expected_state = train(rmsprop(schedule, **options))
    assert_close(changed, by_hand.update(jax.grad(loss)(params), expected_state, params)[0])


@all_options
def test_flatten(options):
    assert_close(
        train(optax.flatten(rmsprop(0.1, **options)))[0], train(rmsprop(0.1, **options))[0]
    )


@all_options
def test_lookahead(options):
    """After one period, the slow parameters are halfway to the fast ones."""
    optimizer = optax.lookahead(rmsprop(0.1, **options), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(tree())
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    fast, _ = train(rmsprop(0.1, **options), steps=3)
    assert_close(params.slow, jax.tree.map(lambda a, b: (a + b) / 2, tree(), fast))


@all_options
def test_schedule_free(options):
    """Gives the same as with Optax's own transformations inside."""

    def final(base):
        optimizer = contrib.schedule_free(base, learning_rate=0.05, b1=0.9)
        params, state = train(optimizer, steps=20, update=jax.jit(optimizer.update))
        return contrib.schedule_free_eval_params(state, params)

    optax_options = {k: v for k, v in options.items() if k != "weight_decay"}
    decay = optax.add_decayed_weights(-0.05 * options.get("weight_decay", 0.0))
    expected = final(optax.chain(optax.rmsprop(0.05, **optax_options), decay))
    assert_close(final(rmsprop(0.05, **options)), expected, rtol=1e-4)


def test_tree_utils():
    state = rmsprop(0.1, momentum=0.9, bias_correction=True).init(tree())
    chex.assert_trees_all_equal_shapes(tree_utils.tree_get(state, "nu"), tree())
    chex.assert_trees_all_equal_shapes(tree_utils.tree_get(state, "trace"), tree())
    assert tree_utils.tree_get(state, "count") == 0
    doubled = tree_utils.tree_map_params(
        rmsprop(0.1, momentum=0.9, bias_correction=True), lambda x: x + 1, state
    )
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(tree_utils.tree_get(doubled, "nu")))
    assert tree_utils.tree_get(doubled, "count") == 0


def test_masked_weight_decay_of_optax():
    """Masked decay in a chain equals the option on the leaves that the mask selects."""
    rate = 0.1
    masked = optax.chain(
        rmsprop(rate), optax.add_decayed_weights(-rate * 0.01, mask={"w": True, "b": False})
    )
    params, _ = train(masked)
    assert_close(params["w"], train(rmsprop(rate, weight_decay=0.01))[0]["w"])
    assert_close(params["b"], train(rmsprop(rate))[0]["b"])


# JAX's transformations.


@all_options
def test_jit_and_eager_agree(options):
    optimizer = rmsprop(optax.cosine_decay_schedule(0.1, 10), **options)
    assert_close(train(optimizer, update=jax.jit(optimizer.update)), train(optimizer))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_vmap_over_hyperparameters(centered, bias_correction):
    """A sweep in one call equals a loop over its points."""
    rng = np.random.default_rng(0)
    sweep = rng.uniform([1e-3, 0.5, 1e-8, 0.0, 0.0], [1e-1, 0.99, 1e-2, 0.95, 0.1], (6, 5))

    def final(rate, decay, eps, momentum, weight_decay):
        optimizer = rmsprop(
            rate, decay, eps, centered=centered, bias_correction=bias_correction,
            momentum=momentum, weight_decay=weight_decay,
        )  # fmt: skip
        return train(optimizer)

    swept = jax.vmap(final)(*jnp.asarray(sweep, jnp.float32).T)
    for i, hyperparameters in enumerate(sweep):
        one = final(*(float(h) for h in hyperparameters))
        assert_close(jax.tree.map(lambda x, i=i: x[i], swept), one, rtol=2e-5)


@all_options
def test_vmap_over_models(options):
    optimizer = rmsprop(0.1, **options)
    models = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), tree())
    state = jax.vmap(optimizer.init)(models)
    updates, _ = jax.vmap(optimizer.update)(models, state, models)
    for i, factor in enumerate((1, 2, -1)):
        model = jax.tree.map(lambda p, f=factor: f * p, tree())
        expected, _ = optimizer.update(model, optimizer.init(model), model)
        assert_close(jax.tree.map(lambda u, i=i: u[i], updates), expected)


@all_options
def test_scan(options):
    optimizer = rmsprop(0.1, **options)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (tree(), optimizer.init(tree())), length=5)
    assert_close((params, state), train(optimizer))


@all_options
def test_shard_map(options):
    """Each of eight devices updates its own rows."""
    optimizer = rmsprop(0.1, **options)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jnp.arange(1.0, 33.0).reshape(16, 2)
    rows = partial(jax.tree.map, lambda x: P("rows") if x.ndim else P())
    state = optimizer.init(params)
    specs = rows(state)
    sharded = jax.shard_map(
        optimizer.update,
        mesh=mesh,
        in_specs=(P("rows"), specs, P("rows")),
        out_specs=(P("rows"), specs),
    )
    assert_close(jax.jit(sharded)(params, state, params), optimizer.update(params, state, params))


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [False, True])
@pytest.mark.parametrize(("scan", "eps"), [(False, 0.0), (True, 1e-8)])
def test_meta_gradients_are_finite_where_a_gradient_is_zero(
    scan, eps_in_sqrt, centered, bias_correction, eps
):
    """Through three steps, with respect to learning rate, decay and parameters."""
    if centered and bias_correction:
        eps += 0.1  # the first step is g / sqrt(eps)
    target = jnp.array([1.0, 0.0, -2.0])

    @jax.jit
    def final_loss(rate, decay, params):
        optimizer = rmsprop(
            rate, decay, eps, eps_in_sqrt=eps_in_sqrt, centered=centered, momentum=0.5,
            bias_correction=bias_correction,
        )  # fmt: skip

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(target * params, state)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        if scan:
            carry, _ = jax.lax.scan(step, carry, length=3)
        else:
            for _ in range(3):
                carry, _ = step(carry, None)
        return (carry[0] ** 2).sum()

    @jax.jit
    def gradients_and_their_slopes(*args):
        gradient = jax.grad(final_loss, argnums=(0, 1, 2))
        return jax.jacfwd(lambda *args: (gradient(*args),) * 2, argnums=(0, 1), has_aux=True)(*args)

    args = (0.1, 0.9, jnp.array([1.0, 2.0, 3.0]))
    second, gradients = gradients_and_their_slopes(*args)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((second, gradients)))
    for i, h in ((0, 1e-2), (1, 1e-3)):
        above, below = list(args), list(args)
        above[i], below[i] = args[i] + h, args[i] - h
        slope = (final_loss(*above) - final_loss(*below)) / (2 * h)
        assert float(gradients[i]) == pytest.approx(float(slope), rel=1e-2, abs=1e-2)


@all_options
def test_eval_shape(options):
    """Parameters that exist only as shapes give the shapes of the state."""
    optimizer = rmsprop(0.1, **options)
    abstract = jax.eval_shape(tree)
    state = jax.eval_shape(optimizer.init, abstract)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(tree()))
    updates, after = jax.eval_shape(optimizer.update, abstract, state, abstract)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, tree())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    # Without eval_shape, abstract parameters give a real state.
    chex.assert_trees_all_equal(optimizer.init(abstract), optimizer.init(tree()))


@all_options
def test_64_bit(options, x64):
    """Every leaf keeps its own precision."""
    params = {"single": jnp.ones(2, jnp.float32), "double": jnp.ones(2, jnp.float64)}
    optimizer = rmsprop(np.float64(0.1), np.float64(0.9), **options)
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, params)
    chex.assert_trees_all_equal_dtypes(state, optimizer.init(params))
    average = state[0].var if options.get("centered") else state[0].nu
    chex.assert_trees_all_equal_dtypes(average, params)


@pytest.mark.parametrize("rate", [np.float64(0.1), 0.1])
def test_64_bit_rate_and_32_bit_parameters_without_params(rate, x64):
    g = jnp.ones(2, jnp.float32)
    optimizer = rmsprop(jnp.asarray(rate), momentum=0.9)
    updates, state = optimizer.update(g, optimizer.init(g))
    chex.assert_trees_all_equal_dtypes((updates, state), (g, optimizer.init(g)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=str)
def test_accumulator_dtype(dtype, x64):
    params = {"half": jnp.ones(2, jnp.bfloat16), "complex": jnp.ones(2, jnp.complex64)}
    optimizer = rmsprop(0.1, centered=True, momentum=0.9, accumulator_dtype=dtype)
    updates, state = optimizer.update(params, optimizer.init(params))
    chex.assert_trees_all_equal_dtypes(updates, params)
    kept_complex = jnp.result_type(dtype, jnp.complex64)
    assert jax.tree.map(lambda x: x.dtype, (state[0].var, state[0].mu, state[2].trace)) == (
        {"half": dtype, "complex": dtype},
        {"half": dtype, "complex": kept_complex},
        {"half": dtype, "complex": kept_complex},
    )


# Pytrees.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array | None


PYTREES = {
    "array": jnp.ones(3),
    "scalar": jnp.array(2.0),
    "python scalar": 2.0,
    "numpy": np.ones(3, np.float32),
    "list": [jnp.ones(2), jnp.ones(())],
    "nested": {"a": (jnp.ones(2), {"b": jnp.ones((1, 1))})},
    "dataclass": Layer(jnp.ones((2, 2)), jnp.ones(2)),
    "None leaf": Layer(jnp.ones((2, 2)), None),
    "masked node": {"a": optax.MaskedNode(), "b": jnp.ones(2)},
    "flax": flax.core.freeze({"a": jnp.ones(2)}),
    "zero size": {"a": jnp.ones((0, 3)), "b": jnp.ones(2)},
    "complex": {"a": jnp.ones(2, jnp.complex64), "b": jnp.ones(2)},
    "empty dict": {},
    "empty tuple": (),
    "only None": [None],
    "mixed dtypes": [jnp.ones(2, jnp.float16), jnp.ones(2, jnp.bfloat16), jnp.ones(2)],
}


@pytest.mark.parametrize("name", PYTREES)
@all_options
def test_pytrees(options, name):
    """Structure, shapes and dtypes are kept; each leaf is updated as if it were alone."""
    params = PYTREES[name]
    optimizer = rmsprop(0.1, **options)
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        leaf = jnp.asarray(leaf)
        assert (update.shape, update.dtype) == (leaf.shape, leaf.dtype)
        alone, _ = optimizer.update(leaf, optimizer.init(leaf), leaf)
        np.testing.assert_allclose(update, alone, rtol=1e-6)


# Other libraries.


@pytest.mark.parametrize("dtype", STORAGES)
def test_flax_nnx(dtype):
    """nnx.Optimizer gives the same result as the same steps by hand."""
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    transformation = rmsprop(0.05, momentum=0.9, weight_decay=1e-3, accumulator_dtype=dtype)

    def loss_of(model):
        return ((model(x) - 1) ** 2).mean()

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    before = loss_of(model)
    graph, params = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    state = transformation.init(params)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss_of)(model))

    for _ in range(20):
        step(model, optimizer)
        gradients = jax.grad(lambda p: loss_of(nnx.merge(graph, p)))(params)
        updates, state = transformation.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    if dtype is None:
        assert_close(nnx.state(model, nnx.Param), params)
    # The leaves have other paths in NNX, so they are rounded with other random bits.
    by_hand = loss_of(nnx.merge(graph, params))
    assert loss_of(model) < 0.5 * before
    assert abs(loss_of(model) - by_hand) < 0.1 * before


def test_equinox():
    """eqx.apply_updates on a filtered model gives the same result as steps on its arrays."""
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    optimizer = rmsprop(0.01, momentum=0.9, weight_decay=1e-3)

    def loss_of(model):
        return ((jax.vmap(model)(x) - 1) ** 2).mean()

    model = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state, state_by_hand = optimizer.init(params), optimizer.init(params)

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(loss_of)(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(20):
        model, state = step(model, state)
        gradients = jax.grad(lambda p: loss_of(eqx.combine(p, static)))(params)
        updates, state_by_hand = optimizer.update(gradients, state_by_hand, params)
        params = optax.apply_updates(params, updates)
    assert_close(eqx.filter(model, eqx.is_inexact_array), params)


def test_plain_dict():
    optimizer = rmsprop_jax.rmsprop(0.05)
    params, _ = train(optimizer, steps=200, update=jax.jit(optimizer.update))
    assert loss(params) < loss(tree()) / 100


def test_state_keeps_the_sharding_of_its_parameter():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, P(None, "x"))
    params = jax.device_put(jnp.ones((4, 16)), sharding)
    state = rmsprop(0.1, centered=True, momentum=0.9).init(params)
    for leaf in (state[0].mu, state[0].var, state[2].trace):
        assert leaf.sharding.is_equivalent_to(sharding, 2)
