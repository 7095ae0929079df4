"""Every tree of parameters and gradients that Optax accepts, compared with `optax.rmsprop`.

The tests say where Optax differs: its state loses a leaf whose gradient is None, its averages of
integers are integers, and it has no weight decay of its own.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.layouts import STORAGES

import rmsprop_jax
from rmsprop_jax import rmsprop

RATE = 0.1
OPTIONS = [
    {},
    {"centered": True},
    {"momentum": 0.9, "nesterov": True},
    {"eps_in_sqrt": False, "bias_correction": True},
    {"momentum": 0.9, "weight_decay": 0.1},
]
all_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
without_decay = pytest.mark.parametrize("options", OPTIONS[:-1], ids=str)

W = jnp.array([1.0, -2.0, 3.0])
# Three steps that make the averages of the elements differ widely.
GRADIENTS = [jnp.array([0.5, -1.0, 2.0]), jnp.array([1.5, 0.3, -1.0]), jnp.array([-0.4, 2.0, 0.7])]


def optax_rmsprop(rate=RATE, weight_decay=None, mask=None, **options):
    """``optax.rmsprop``, then Optax's own weight decay, with a minus sign as it comes last."""
    optimizer = optax.rmsprop(rate, **options)
    if weight_decay is None:
        return optimizer
    return optax.chain(optimizer, optax.add_decayed_weights(-rate * weight_decay, mask))


def steps(optimizer, gradients, params, apply=optax.apply_updates):
    """Parameters and state after all gradients; the state never changes its structure."""
    state = optimizer.init(params)
    for g in gradients:
        updates, after = optimizer.update(g, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        params, state = apply(params, updates), after
    return params, state


def assert_close(a, b, rtol=1e-5):
    def close(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)

    jax.tree.map(close, a, b)


def arrays(tree):
    """Shapes and dtypes of all leaves."""
    return [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


# None gradients.


# Without bias correction, which counts such a step too.
@pytest.mark.parametrize("options", [*OPTIONS[:3], OPTIONS[4]], ids=str)
def test_step_without_gradient_changes_nothing(options):
    """Parameter, average and momentum stay. Optax would lose them, so it skips these steps."""
    optimizer = rmsprop(RATE, **options)
    params = {"a": W, "b": W}
    state = optimizer.init(params)
    for g_a, g_b in zip([GRADIENTS[0], None, GRADIENTS[2]], GRADIENTS, strict=True):
        updates, after = optimizer.update({"a": g_a, "b": g_b}, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        before, params = params, rmsprop_jax.apply_updates(params, updates)
        if g_a is None:
            assert updates["a"] is None
            assert_close(params["a"], before["a"], rtol=0)
            assert_close(arrays_of("a", after), arrays_of("a", state), rtol=0)
        state = after
    assert_close(params["a"], steps(optax_rmsprop(**options), GRADIENTS[::2], W)[0])
    assert_close(params["b"], steps(optax_rmsprop(**options), GRADIENTS, W)[0])


def arrays_of(name, state):
    """All arrays that the state has for this parameter."""
    leaves = jax.tree.leaves_with_path(state)
    found = [leaf for path, leaf in leaves if jax.tree_util.DictKey(name) in path]
    assert found
    return found


# Leaves without a gradient, which nothing moves.

WITHOUT_GRADIENT = {
    "integers": jnp.arange(3),
    "NumPy's": np.arange(3, dtype=np.int8),
    "booleans": jnp.array([True, False]),
    "key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0)),
    "raw key": jax.random.PRNGKey(0),
    "Python bool": True,
    "Python int": 3,
    "None": None,
    "function": jax.nn.relu,
}


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
@all_options
def test_leaves_without_gradient(options, name):
    """They have no state and stay. Optax only gets w: it has state for some and rejects others."""
    leaf = WITHOUT_GRADIENT[name]
    optimizer = rmsprop(RATE, **options)
    params = {"w": W, "x": leaf}
    gradients = [{"w": g, "x": None} for g in GRADIENTS]
    after, state = steps(optimizer, gradients, params, rmsprop_jax.apply_updates)
    expected, _ = steps(optax_rmsprop(**options), [{"w": g} for g in GRADIENTS], {"w": W})
    assert_close(after["w"], expected["w"])
    assert arrays(state) == arrays(optimizer.init({"w": W}))
    assert eqx.tree_equal(after["x"], leaf)
    updates, _ = optimizer.update(gradients[0], optimizer.init(params), params)
    assert updates["x"] is None
    assert eqx.tree_equal(eqx.apply_updates(params, updates)["x"], leaf)


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.array([True, False, True])], ids=["n", "b"])
@pytest.mark.parametrize("gradient", [jnp.arange(3), jnp.ones(3)], ids=["integer", "float"])
@pytest.mark.parametrize("given", [True, False])
@all_options
def test_gradient_of_an_integer_leaf_is_rejected_by_name(options, given, gradient, leaf):
    """Optax accepts it. Without params the dtype is unknown, but there is no state for it."""
    given = given or "weight_decay" in options
    optimizer = rmsprop(RATE, **options)
    params = {"n": leaf, "w": W}
    state = optimizer.init(params)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        with pytest.raises(
            TypeError if given else (TypeError, ValueError), match=r"updates\['n'\]"
        ):
            update({"n": gradient, "w": W}, state, params if given else None)


@pytest.mark.parametrize("jit", [False, True])
@all_options
def test_float0(options, jit):
    """From jax.grad(allow_int=True): updates are zeros. Optax fails to square a float0."""
    params = {"b": jnp.array([True, False]), "n": jnp.arange(3), "w": W}
    optimizer = rmsprop(RATE, **options)

    def step(params, state):
        g = jax.grad(lambda p: (p["n"] * p["w"] ** 2).sum(), allow_int=True)(params)
        updates, state = optimizer.update(g, state, params)
        return updates, optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    updates, after, new_state = (jax.jit(step) if jit else step)(params, state)
    assert arrays(updates) == arrays(params)
    assert arrays(after) == arrays(params)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    for name in "bn":
        assert not updates[name].any()
        np.testing.assert_array_equal(after[name], params[name])
    assert_close(after["w"], steps(optax_rmsprop(**options), [2 * jnp.arange(3) * W], W)[0])


def test_float0_without_params():
    params = {"k": jax.random.key(0), "n": jnp.arange(3), "w": W}
    g = jax.grad(lambda p: (p["w"] ** 2).sum(), allow_int=True)(params)
    updates, _ = rmsprop(RATE).update(g, rmsprop(RATE).init(params))
    assert updates["k"] is updates["n"] is None
    after = rmsprop_jax.apply_updates(params, updates)
    assert eqx.tree_equal(after["k"], params["k"])
    assert_close(after["w"], steps(optax_rmsprop(), [2 * W], W)[0])


# Equinox, where leaves need not be arrays.


class ViT(eqx.Module):
    """Arrays, integers, functions, bools (``inference``) and floats (a dropout's p) are leaves."""

    positions: jax.Array
    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.positions = jnp.arange(4)
        self.embed = eqx.nn.Embedding(4, 4, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(
            2, 4, dropout_p=0.1, inference=False, key=keys[1]
        )
        self.mlp = eqx.nn.MLP(4, 2, 3, 1, activation=jax.nn.gelu, key=keys[2])

    def __call__(self, x, key):
        x = x + jax.vmap(self.embed)(self.positions)
        return jax.vmap(self.mlp)(x + self.attention(x, x, x, key=key)).mean()


@pytest.fixture(scope="module")
def vit():
    """A model and its gradients in three steps, None at leaves without one."""
    x = jnp.linspace(-1, 1, 16).reshape(4, 4)
    model = ViT(jax.random.key(0))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model, key: (model(x, key) - 1) ** 2))
    return model, [gradient(model, key) for key in jax.random.split(jax.random.key(1), 3)]


def inexact(model):
    return eqx.filter(model, eqx.is_inexact_array)


FILTERS = {
    "unfiltered": lambda model: model,
    "is_array": lambda model: eqx.filter(model, eqx.is_array),
    "is_inexact_array": inexact,
    "no params": lambda _: None,
}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        *((name, {"momentum": 0.9, "nesterov": True}) for name in FILTERS),
        *((name, {"weight_decay": 0.1}) for name in FILTERS if name != "no params"),
    ],
    ids=str,
)
@pytest.mark.parametrize("initial", ["unfiltered", "is_array", "is_inexact_array"])
def test_equinox(initial, given, options, vit):
    """Filtered or not, in init and update, the result is Optax's on the filtered model."""
    model, gradients = vit
    optimizer = rmsprop(RATE, **options)
    state = optimizer.init(FILTERS[initial](model))
    structure = jax.tree.structure(state)
    for g in gradients:
        updates, state = optimizer.update(g, state, FILTERS[given](model))
        assert jax.tree.structure(updates) == jax.tree.structure(g)
        assert jax.tree.structure(state) == structure
        model = eqx.apply_updates(model, updates)
    expected, _ = steps(optax_rmsprop(**options), gradients, inexact(vit[0]))
    assert_close(inexact(model), expected, rtol=1e-4)
    others = (eqx.filter(m, eqx.is_inexact_array, inverse=True) for m in (model, vit[0]))
    assert eqx.tree_equal(*others)


def test_equinox_compiled(vit):
    """As in Equinox's examples, with the model as params, and rmsprop_jax.apply_updates."""
    model, gradients = vit
    optimizer = rmsprop(RATE, weight_decay=0.1)

    @eqx.filter_jit
    def step(model, state, g):
        updates, state = optimizer.update(g, state, model)
        return rmsprop_jax.apply_updates(model, updates), state

    state = optimizer.init(eqx.filter(model, eqx.is_array))
    for g in gradients:
        model, state = step(model, state, g)
    expected, _ = steps(optax_rmsprop(weight_decay=0.1), gradients, inexact(vit[0]))
    assert_close(inexact(model), expected, rtol=1e-4)
    assert model.attention.dropout.p == 0.1
    assert model.attention.dropout.inference is False
    assert model.mlp.activation is vit[0].mlp.activation


# Parameters frozen by Optax, or by gradients of None in all steps.

FROZEN = {"w": False, "f": True, "n": True}
TRAINED = {"w": True, "f": False, "n": False}
ZERO = optax.masked(optax.set_to_zero(), FROZEN)
FREEZERS = {
    "partition": lambda tx: optax.partition({True: tx, False: optax.set_to_zero()}, TRAINED),
    "masked": lambda tx: optax.chain(optax.masked(tx, TRAINED), ZERO),
    "set_to_zero": lambda tx: optax.chain(tx, ZERO),
    "None": lambda tx: tx,
}


@pytest.mark.parametrize("freeze", FREEZERS)
@without_decay
def test_frozen(options, freeze):
    """The updates are Optax's, but only our state keeps its structure."""
    params = {"w": W, "f": W, "n": jnp.arange(3)}
    ours, optaxs = (FREEZERS[freeze](f(RATE, **options)) for f in (rmsprop, optax.rmsprop))
    state, optax_state = ours.init(params), optaxs.init(params)
    structure = jax.tree.structure(state)
    for g in GRADIENTS:
        gradients = {"w": g, "f": None if freeze == "None" else g, "n": None}
        updates, state = ours.update(gradients, state, params)
        expected, optax_state = optaxs.update(gradients, optax_state, params)
        assert_close(updates, expected)
        assert jax.tree.structure(updates) == jax.tree.structure(gradients)
        assert jax.tree.structure(state) == structure
        after = rmsprop_jax.apply_updates(params, updates)
        assert_close((after["f"], after["n"]), (params["f"], params["n"]), rtol=0)
        params = after


@without_decay
def test_params_are_ignored_unless_needed(options):
    """They may have another structure, or be None, as with Optax."""
    ours, optaxs = rmsprop(RATE, **options), optax.rmsprop(RATE, **options)
    state, g = optaxs.init({"w": W}), {"w": GRADIENTS[0]}
    expected, _ = optaxs.update(g, state, {"other": [W]})
    for params in ({"other": [W]}, {"w": None}, (), None):
        updates, _ = ours.update(g, ours.init({"w": W}), params)
        assert_close(updates, expected)


# Dtypes.

HALF, FULL = jnp.bfloat16, jnp.float32
DTYPES = [(HALF, FULL), (jnp.float16, FULL), (FULL, HALF), (HALF, HALF), (FULL, FULL)]


@pytest.mark.parametrize(("dtype", "param_dtype"), DTYPES, ids=str)
@all_options
def test_half_precision_gradients(options, dtype, param_dtype):
    """With params, updates have the wider dtype, as in Optax, and the numbers of float32."""
    params = W.astype(param_dtype)
    # The square of the last element underflows in float16.
    gradients = [(g * jnp.array([1.0, 1.0, 1e-4])).astype(dtype) for g in GRADIENTS]
    ours, optaxs = rmsprop(RATE, **options), optax_rmsprop(**options)
    in_float32 = optaxs.init(W)
    state = ours.init(params)
    for g in gradients:
        updates, state = ours.update(g, state, params)
        expected, in_float32 = optaxs.update(g.astype(FULL), in_float32, W)
        assert updates.dtype == jnp.promote_types(dtype, param_dtype)
        assert updates.dtype == optaxs.update(g, optaxs.init(params), params)[0].dtype
        assert_close(updates, expected, rtol=1e-5 if updates.dtype == FULL else 1e-2)


@pytest.mark.parametrize("dtype", [HALF, jnp.float16], ids=str)
@without_decay
def test_half_precision_gradients_without_params(options, dtype):
    """Updates have the gradient's dtype (Optax's have its state's); averages stay float32."""
    ours, optaxs = rmsprop(RATE, **options), optax.rmsprop(RATE, **options)
    g = GRADIENTS[0].astype(dtype)
    updates, state = ours.update(g, ours.init(W))
    expected, expected_state = optaxs.update(g.astype(FULL), optaxs.init(W))
    assert updates.dtype == dtype
    assert_close(updates, expected, rtol=1e-2)
    assert arrays(state) == arrays(ours.init(W))
    if "centered" not in options:
        assert_close(state[0].nu, expected_state[0].nu, rtol=1e-6)


def test_float16_gradients_at_a_small_rate():
    """Updates of 1e-8 underflow in float16; [optax 1039, 377]."""
    g = jnp.asarray(np.random.default_rng(0).standard_normal((300, 8)), jnp.float16)

    def move(optimizer, gradients):
        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(8)
        return jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0][0]

    moved = move(rmsprop(1e-8), g)
    assert moved.dtype == jnp.float32
    np.testing.assert_allclose(moved, move(rmsprop(1e-8), g.astype(FULL)), rtol=1e-5)
    expected = move(optax.rmsprop(1e-8), g.astype(FULL))
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("given", [False, True])
@without_decay
def test_float32_gradients_of_float64_parameters(options, given, x64):
    """Without params, updates have the gradient's float32, but Optax's have its state's dtype."""
    params = jnp.asarray(np.asarray(W), jnp.float64)
    ours, optaxs = rmsprop(RATE, **options), optax.rmsprop(RATE, **options)
    state, optax_state = ours.init(params), optaxs.init(params)
    for g in GRADIENTS:
        updates, state = ours.update(g, state, params if given else None)
        expected, optax_state = optaxs.update(g, optax_state)
        assert updates.dtype == (jnp.float64 if given else jnp.float32)
        assert_close(updates, expected)


# Numbers.


@pytest.mark.parametrize(
    "rate", [-RATE, lambda count: 0.05 - 0.1 * count], ids=["rate", "schedule"]
)
@without_decay
def test_negative_rate_maximizes(options, rate):
    """As in diffrax's neural SDE, whose discriminator maximizes."""
    ours, _ = steps(rmsprop(rate, **options), GRADIENTS, W)
    assert_close(ours, steps(optax.rmsprop(rate, **options), GRADIENTS, W)[0])


@pytest.mark.parametrize("function", [rmsprop, optax.rmsprop])
def test_one_of_two_networks_maximizes(function):
    optimizer = optax.partition(
        {"up": function(-RATE), "down": function(RATE)}, {"generator": "down", "critic": "up"}
    )
    g = {"generator": GRADIENTS[0], "critic": GRADIENTS[0]}
    updates, _ = optimizer.update(g, optimizer.init(g), g)
    assert_close(updates["critic"], -updates["generator"], rtol=0)
    assert_close(updates["critic"], RATE * np.sign(GRADIENTS[0]) / np.sqrt(0.1))


@all_options
def test_python_floats_are_parameters(options):
    """As in jax.grad. They have state, weight decay and updates."""
    params, gradients = {"a": 1.0, "b": [2.0]}, {"a": 0.5, "b": [-3.0]}
    ours, optaxs = rmsprop(RATE, **options), optax_rmsprop(**options)
    assert arrays(ours.init(params)) == arrays(ours.init(jax.tree.map(jnp.asarray, params)))
    after, _ = steps(ours, [gradients] * 3, params)
    assert_close(after, steps(optaxs, [gradients] * 3, params)[0])


# Weight decay on some of the leaves.

NESTED = {"w": {"kernel": jnp.ones((2, 3)), "bias": W}, "head": [W, jnp.ones((3, 1))]}
MASKS = {
    "tree": {"w": {"kernel": True, "bias": False}, "head": [False, True]},
    "prefix": {"w": True, "head": False},
    "one boolean": False,
    "callable": lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    "callable prefix": lambda params: {name: name == "w" for name in params},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"centered": True}], ids=str)
def test_mask_of_weight_decay(options, mask):
    """As in optax.adamw: where it is True, w loses rate * decay * w per step, elsewhere nothing."""
    options = {"weight_decay": 0.5, "mask": MASKS[mask], **options}
    gradients = [jax.tree.map(lambda p, i=i: (i - 0.7) * p, NESTED) for i in range(3)]
    ours, _ = steps(rmsprop(RATE, **options), gradients, NESTED)
    assert_close(ours, steps(optax_rmsprop(**options), gradients, NESTED)[0])
    zeros = [jax.tree.map(jnp.zeros_like, NESTED)] * 3
    ours, _ = steps(rmsprop(RATE, **options), zeros, NESTED)
    # optax.masked also accepts prefixes.
    kept = optax.masked(optax.scale((1 - RATE * 0.5) ** 3), MASKS[mask])
    assert_close(ours, kept.update(NESTED, kept.init(NESTED))[0])


def test_masked_decay_follows_the_schedule():
    """Each step decays by its own learning rate."""
    optimizer = rmsprop(
        lambda count: 0.1 * (count + 1), weight_decay=0.5, mask={"a": True, "b": False}
    )
    params, _ = steps(optimizer, [{"a": 0 * W, "b": 0 * W}] * 2, {"a": W, "b": W})
    assert_close(params, {"a": (1 - 0.05) * (1 - 0.1) * W, "b": W})


TREE = {"w": True, "n": False, "f": True}


@pytest.mark.parametrize("mask", [TREE, lambda params: {name: TREE[name] for name in params}])
def test_mask_where_leaves_have_no_gradient(mask):
    """Such leaves do not decay, whatever the mask says about them."""
    params = {"w": W, "n": jnp.arange(3), "f": W}
    gradients = [{"w": g, "n": None, "f": None} for g in GRADIENTS]
    optimizer = rmsprop(RATE, weight_decay=0.5, mask=mask)
    after, _ = steps(optimizer, gradients, params, rmsprop_jax.apply_updates)
    assert_close(after["w"], steps(optax_rmsprop(weight_decay=0.5), GRADIENTS, W)[0])
    assert_close((after["n"], after["f"]), (params["n"], W), rtol=0)


# The structure is the same after every step.


@pytest.mark.parametrize("accumulator_dtype", STORAGES)
@all_options
def test_scan_carries_leaves_without_gradient(options, accumulator_dtype):
    """Structures and dtypes do not change. Optax fails here: its state loses such leaves."""
    params = {"w": W, "f": W, "n": jnp.arange(3), "k": jax.random.key(0), "none": None}
    optimizer = rmsprop(RATE, **options, accumulator_dtype=accumulator_dtype)

    def step(carry, g):
        params, state = carry
        gradients = {"w": g, "f": None, "n": None, "k": None, "none": None}
        updates, state = optimizer.update(gradients, state, params)
        return (eqx.apply_updates(params, updates), state), jax.tree.structure(updates) == (
            jax.tree.structure(gradients)
        )

    carry = (params, optimizer.init(params))
    (after, state), same = jax.lax.scan(step, carry, jnp.stack(GRADIENTS))
    assert same.all()
    assert arrays(state) == arrays(optimizer.init(params))
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    assert all(eqx.tree_equal(after[name], params[name]) for name in ("f", "n", "k", "none"))
    if accumulator_dtype is None:
        assert_close(after["w"], steps(optax_rmsprop(**options), GRADIENTS, W)[0])


# Other containers and dtypes.


@jax.tree_util.register_pytree_node_class
class Checked:
    """A container that only accepts arrays."""

    def __init__(self, w):
        assert isinstance(w, jax.Array), w
        self.w = jnp.asarray(w)

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_container_that_checks_its_leaves():
    params = Checked(jnp.arange(3.0))
    for function in (rmsprop, optax.rmsprop):
        optimizer = function(0.1, momentum=0.9)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        np.testing.assert_allclose(updates.w, [0.0, -0.316228, -0.316228], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("given", [True, False])
def test_real_gradient_of_a_complex_parameter(given, options):
    params, g = jnp.ones(2, jnp.complex64), jnp.array([0.5, -2.0])
    ours, theirs = (
        function(0.1, **options).update(
            g, function(0.1, **options).init(params), params if given else None
        )[0]
        for function in (rmsprop, optax.rmsprop)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
