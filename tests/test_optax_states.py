"""A drop-in for Optax's: the same arguments, numbers and states; runs continue in either."""

import contextlib
import inspect

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax import export
from jax.example_libraries import optimizers as example_libraries
from optax import tree_utils
from support.trajectories import assert_same_path, decaying, path, problem

import rmsprop_jax
from rmsprop_jax import rmsprop, scale_by_rms

# It has no public name.
ScaleByRmsWithCountState = type(optax.scale_by_rms(bias_correction=True).init({}))

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"bias_correction": True},
    {"bias_correction": True, "momentum": 0.9, "initial_scale": 1.0},
    {"eps_in_sqrt": False, "eps": 1e-2},
    {"initial_scale": 1.0, "decay": 0.5},
]
RATES = {"constant": 0.1, "scheduled": lambda count: 0.1 * 0.7**count}
all_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
all_rates = pytest.mark.parametrize("rate", RATES)

PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array(0.5)}, "a": jnp.ones(3)}


def pair(rate, options):
    return rmsprop(RATES[rate], **options), optax.rmsprop(RATES[rate], **options)


def gradients(step, params=PARAMS):
    """Gradients whose size and sign change at each step."""
    return jax.tree.map(lambda p: jnp.cos(1.3 * step + p) * (step + 0.5), params)


def run(optimizer, params, state, steps, given=True):
    for step in steps:
        updates, state = optimizer.update(gradients(step), state, params if given else None)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


# Classes and structure.


@all_options
@all_rates
def test_structure_is_optaxs(rate, options):
    """Before and after some steps; the structure includes the classes."""
    ours, optaxs = pair(rate, options)
    state, expected = ours.init(PARAMS), optaxs.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert_close(state, expected)
    (params, state), (expected_params, expected) = (
        run(optimizer, PARAMS, optimizer.init(PARAMS), range(3)) for optimizer in (ours, optaxs)
    )
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert_close(state, expected)
    assert_close(params, expected_params)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [
        leaf.dtype for leaf in jax.tree.leaves(expected)
    ]


@all_rates
@pytest.mark.parametrize("weight_decay", [{}, {"weight_decay": None}], ids=str)
def test_classes(rate, weight_decay):
    """As callers look for them by name; weight_decay=None adds no fourth state."""
    state = rmsprop(RATES[rate], **weight_decay).init(PARAMS)
    assert len(state) == 3
    assert isinstance(state[0], optax.ScaleByRmsState)
    assert isinstance(
        state[1], optax.ScaleByScheduleState if rate == "scheduled" else optax.EmptyState
    )
    assert isinstance(state[2], optax.EmptyState)
    state = rmsprop(RATES[rate], momentum=0.9, bias_correction=True, **weight_decay).init(PARAMS)
    assert len(state) == 3
    assert isinstance(state[0], ScaleByRmsWithCountState)
    assert isinstance(state[2], optax.TraceState)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_scale_by_rms(bias_correction):
    """It has the same state by itself, and continues from Optax's."""
    ours, optaxs = (
        f(initial_scale=0.5, bias_correction=bias_correction)
        for f in (scale_by_rms, optax.scale_by_rms)
    )
    _, state = optaxs.update(gradients(0), optaxs.init(PARAMS))
    assert type(ours.init(PARAMS)) is type(state)
    assert_close(ours.update(gradients(1), state), optaxs.update(gradients(1), state))


# Runs that change from one optimizer to the other.


def flax_bytes(state, target, folder):
    return flax.serialization.from_bytes(target, flax.serialization.to_bytes(state))


def orbax_with_target(state, target, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, target)


CHECKPOINTS = {"unchanged": lambda state, *_: state, "flax": flax_bytes, "orbax": orbax_with_target}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@all_options
@all_rates
def test_optax_run_continues_here_and_back(rate, options, checkpoint, tmp_path):
    """Only the import changes; [dalle-mini 71, orbax 1904]."""
    through = CHECKPOINTS[checkpoint]
    ours, optaxs = pair(rate, options)
    params, state = run(optaxs, PARAMS, optaxs.init(PARAMS), range(2))
    state = through(state, ours.init(PARAMS), tmp_path / "to ours")
    params, state = run(ours, params, state, range(2, 4))
    state = through(state, optaxs.init(PARAMS), tmp_path / "to optax")
    params, state = run(optaxs, params, state, range(4, 6))
    expected, expected_state = run(optaxs, PARAMS, optaxs.init(PARAMS), range(6))
    assert_close(params, expected)
    assert_close(state, expected_state)


# States without their classes: only the order, or only the names, are left.


def orbax_without_target(state, folder):
    """Dictionaries with sorted fields, lists, and None for an EmptyState."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder)
    assert isinstance(restored, list)
    assert isinstance(restored[0], dict)
    return restored


def as_json(state, _):
    """Lists instead of tuples and named tuples, an empty one for an EmptyState."""
    return [list(part) for part in state]


WITHOUT_CLASSES = {
    "chain": lambda state, _: list(state),
    "json": as_json,
    "orbax": orbax_without_target,
}


@pytest.mark.parametrize("restore", WITHOUT_CLASSES)
@all_options
@all_rates
def test_state_without_its_classes(rate, options, restore, tmp_path):
    """Optax's or ours, it works and gets its classes back; Optax only accepts the first."""
    ours, optaxs = pair(rate, options)
    for number, before in enumerate((ours, optaxs)):
        params, state = run(before, PARAMS, before.init(PARAMS), range(2))
        restored = WITHOUT_CLASSES[restore](state, tmp_path / str(number))
        resumed, after = run(ours, params, restored, range(2, 4))
        expected, expected_state = run(optaxs, params, state, range(2, 4))
        if restore == "chain":
            assert_close(run(optaxs, params, restored, range(2, 4))[0], expected)
        assert_close(resumed, expected)
        assert jax.tree.structure(after) == jax.tree.structure(expected_state)
        assert_close(after, expected_state)


# tree_get and tree_set.


@pytest.mark.parametrize(
    ("field", "rate", "options"),
    [
        ("nu", "constant", {}),
        ("nu", "scheduled", {"bias_correction": True}),
        ("trace", "constant", {"momentum": 0.9, "nesterov": True}),
        ("count", "scheduled", {}),
        ("count", "scheduled", {"momentum": 0.9}),
        ("count", "constant", {"bias_correction": True}),
    ],
)
def test_tree_get_and_tree_set(field, rate, options):
    """[optax 1036, 206]."""
    ours, optaxs = pair(rate, options)
    states = [
        run(optimizer, PARAMS, optimizer.init(PARAMS), range(3))[1] for optimizer in (ours, optaxs)
    ]
    assert_close(*(tree_utils.tree_get(state, field) for state in states))
    for value in (7, jnp.asarray(7)) if field == "count" else (gradients(9),):
        value = jax.tree.map(abs, value)
        ours_set, optaxs_set = (tree_utils.tree_set(state, **{field: value}) for state in states)
        assert jax.tree.structure(ours_set) == jax.tree.structure(optaxs_set)
        assert_close(
            run(ours, PARAMS, ours_set, range(3, 5)), run(optaxs, PARAMS, optaxs_set, range(3, 5))
        )


def test_tree_get_of_two_counts():
    """Bias correction and a schedule have one each: get is ambiguous, set sets both."""
    ours, optaxs = pair("scheduled", {"bias_correction": True})
    for optimizer in (ours, optaxs):
        state = optimizer.init(PARAMS)
        with pytest.raises(KeyError, match="count"):
            tree_utils.tree_get(state, "count")
    state, expected = (
        tree_utils.tree_set(o.init(PARAMS), count=7, nu=PARAMS) for o in (ours, optaxs)
    )
    assert_close(ours.update(gradients(0), state), optaxs.update(gradients(0), expected))


# Without params.


@all_options
@all_rates
def test_without_params(rate, options):
    ours, optaxs = pair(rate, options)
    params, _ = run(ours, PARAMS, ours.init(PARAMS), range(4), given=False)
    assert_close(params, run(optaxs, PARAMS, optaxs.init(PARAMS), range(4), given=False)[0])


# inject_hyperparams.

DECAYING = {"a": True, "dense": False}


@all_options
@all_rates
@pytest.mark.parametrize("given", [False, True])
def test_inject_hyperparams(given, rate, options):
    """The same hyperparameters in the same state, with params and without; [optax 4, 206, 363]."""
    ours, optaxs = (
        optax.inject_hyperparams(f)(learning_rate=RATES[rate], **options)
        for f in (rmsprop, optax.rmsprop)
    )
    params, state = run(ours, PARAMS, ours.init(PARAMS), range(3), given)
    expected, expected_state = run(optaxs, PARAMS, optaxs.init(PARAMS), range(3), given)
    assert state.hyperparams.keys() == expected_state.hyperparams.keys()
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    assert_close(state.hyperparams, expected_state.hyperparams)
    assert_close(params, expected)
    # A state of Optax continues here, inside the wrapper too.
    assert_close(
        run(ours, params, expected_state, range(3, 5)), run(optaxs, params, state, range(3, 5))
    )


@pytest.mark.parametrize("mask", [DECAYING, lambda tree: {name: DECAYING[name] for name in tree}])
def test_inject_hyperparams_with_a_masked_decay(mask):
    """A function must be static, or it counts as a schedule; Optax has no such argument."""
    options = {"learning_rate": 0.1, "weight_decay": 0.5, "mask": mask}
    injected = optax.inject_hyperparams(rmsprop, static_args="mask")(**options)
    assert "mask" not in injected.init(PARAMS).hyperparams
    assert_close(injected.init(PARAMS).hyperparams["weight_decay"], 0.5)
    params, _ = run(injected, PARAMS, injected.init(PARAMS), range(3))
    alone = rmsprop(**options)
    assert_close(params, run(alone, PARAMS, alone.init(PARAMS), range(3))[0])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=str)
def test_rate_changed_by_hand_between_steps(options, given):
    """Brax's PPO with ADAPTIVE_KL: the next rate is computed from the current one."""

    def trained(function):
        optimizer = optax.inject_hyperparams(function)(learning_rate=0.1, **options)

        @jax.jit
        def step(carry, divergence):
            params, state, rate = carry
            rate = jnp.where(
                divergence > 0.02, rate / 1.5, jnp.where(divergence < 0.005, rate * 1.5, rate)
            )
            state.hyperparams["learning_rate"] = rate
            g = jax.grad(lambda p: sum(((x - 3) ** 2).sum() for x in jax.tree.leaves(p)))(params)
            updates, state = optimizer.update(g, state, *([params] if given else []))
            return (optax.apply_updates(params, updates), state, rate), None

        carry = (PARAMS, optimizer.init(PARAMS), jnp.asarray(0.1))
        return jax.lax.scan(step, carry, jnp.array([0.03, 0.001, 0.001, 0.01, 0.03]))[0]

    assert_close(trained(rmsprop), trained(optax.rmsprop))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"bias_correction": True}], ids=str)
def test_meta_learned_rate(options):
    """Optax's meta-learning notebook: the gradient of a later loss by the learning rate."""

    def meta_gradient(function):
        optimizer = optax.inject_hyperparams(function)(learning_rate=0.0, **options)

        def final_loss(eta, params, state):
            for step in range(3):
                state.hyperparams["learning_rate"] = jax.nn.sigmoid(eta)
                updates, state = optimizer.update(gradients(step), state)
                params = optax.apply_updates(params, updates)
            return sum((x**2).sum() for x in jax.tree.leaves(params))

        return jax.jit(jax.value_and_grad(final_loss))(-2.0, PARAMS, optimizer.init(PARAMS))

    # Squares of sums that nearly cancel, a few ulp apart.
    assert_close(meta_gradient(rmsprop), meta_gradient(optax.rmsprop), rtol=1e-4)


# Half precision: decay 0.999 is 1 in bfloat16, so Optax multiplies the gradient by 10000.

HALF = jnp.ones(3, jnp.bfloat16)


def injected(dtype=None, function=rmsprop, **options):
    return optax.inject_hyperparams(function, hyperparam_dtype=dtype)(1e-3, **options)


@pytest.mark.parametrize("options", [{"decay": 0.999}, {}, {"momentum": 0.9}], ids=str)
@pytest.mark.parametrize("jit", [False, True])
def test_injected_bfloat16_is_rejected(jit, options):
    """[optax 1414, 583, 1532]: because of its dtype, since its value may be traced."""

    def update():
        optimizer = injected(**options)
        return optimizer.update(HALF, optimizer.init(HALF), HALF)

    with pytest.raises(ValueError, match="hyperparam_dtype"):
        (jax.jit(update) if jit else update)()


@pytest.mark.parametrize("name", ["decay", "momentum"])
def test_traced_bfloat16_is_rejected(name):
    """Its value is unknown, its dtype is not; the message names the argument."""

    @jax.jit
    def init(number):
        return rmsprop(0.1, **{name: number}).init(HALF)

    with pytest.raises(ValueError, match=f"(?s){name}.*hyperparam_dtype"):
        init(jnp.bfloat16(0.5))


@pytest.mark.parametrize("name", ["decay", "momentum"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rejected_without_a_wrapper(dtype, name):
    """0.5 would be exact: it is the dtype that is rejected."""
    with pytest.raises(ValueError, match="hyperparam_dtype"):
        rmsprop(0.1, **{name: jnp.asarray(0.5, dtype)})

    def update(value):
        return rmsprop(0.1, **{name: value}).init(PARAMS)

    for transform in (jax.jit, jax.vmap):
        with pytest.raises(ValueError, match="hyperparam_dtype"):
            transform(update)(jnp.full(1 if transform is jax.vmap else (), 0.5, dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("jit", [False, True])
def test_rate_and_eps_may_be_in_half_precision(jit, dtype):
    rate, eps = jnp.asarray(0.125, dtype), jnp.asarray(0.25, dtype)

    def updates(function, rate, eps):
        optimizer = function(rate, eps=eps)
        return optimizer.update(gradients(0), optimizer.init(PARAMS))[0]

    ours = jax.jit(updates, static_argnums=0) if jit else updates
    assert_close(ours(rmsprop, rate, eps), updates(optax.rmsprop, 0.125, 0.25))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_injected_in_float32_works(jit, given):
    """As the message advises; the update is Optax's, to bfloat16's precision."""
    found = []
    for function in (rmsprop, optax.rmsprop):
        optimizer = injected(jnp.float32, function, decay=0.999)
        update = jax.jit(optimizer.update) if jit else optimizer.update
        updates, _ = update(HALF, optimizer.init(HALF), HALF if given else None)
        found.append(updates.astype(jnp.float32))
    assert_close(found[0], jnp.full(3, -1e-3 / np.sqrt(1e-3)), rtol=1e-2)
    assert_close(*found, rtol=1e-2)


# jax.export.


@pytest.fixture(scope="module")
def registered():
    """Registers the state's classes by their public names, possible once per process."""
    for state_type in (
        optax.ScaleByRmsState,
        ScaleByRmsWithCountState,
        optax.ScaleByScheduleState,
        optax.TraceState,
        optax.EmptyState,
    ):
        with contextlib.suppress(ValueError):
            export.register_namedtuple_serialization(
                state_type, serialized_name=f"optax.{state_type.__name__}"
            )


@pytest.mark.parametrize("serialized", [False, True])
@pytest.mark.parametrize("options", OPTIONS[:5:2], ids=str)
@all_rates
def test_export(rate, options, serialized, registered):
    """A compiled step with its state; [jax 20134]."""
    ours, optaxs = pair(rate, options)
    params, state = run(ours, PARAMS, ours.init(PARAMS), range(2))
    _, expected_state = run(optaxs, PARAMS, optaxs.init(PARAMS), range(2))

    def step(params, state, g):
        updates, state = ours.update(g, state, params)
        return optax.apply_updates(params, updates), state

    exported = export.export(jax.jit(step))(params, state, gradients(2))
    if serialized:
        exported = export.deserialize(exported.serialize())
    after = exported.call(params, state, gradients(2))
    assert_close(after, step(params, state, gradients(2)))
    assert_close(after, run(optaxs, params, expected_state, [2]))
    assert jax.tree.structure(after[1]) == jax.tree.structure(state)


# Arguments and numbers.


@pytest.mark.parametrize("name", ["rmsprop", "scale_by_rms", "scale_by_stddev"])
def test_positional_arguments_and_defaults_are_optaxs(name):
    ours = inspect.signature(getattr(rmsprop_jax, name)).parameters.values()
    optaxs = inspect.signature(getattr(optax, name)).parameters.values()
    positional = [p for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in optaxs]


SEEDS = [0, 1]
MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("initial_scale", [0.0, 1.0])
def test_parameters_are_optaxs(initial_scale, bias_correction, eps_in_sqrt, momentum, seed):
    """With a schedule, over 120 steps."""
    options = {
        "initial_scale": initial_scale,
        "bias_correction": bias_correction,
        "eps_in_sqrt": eps_in_sqrt,
        **momentum,
    }
    gradients, params = problem(seed)
    ours = path(rmsprop_jax.rmsprop(decaying(1e-2), **options), gradients, params)
    optaxs = path(optax.rmsprop(decaying(1e-2), **options), gradients, params)
    assert_same_path(ours, optaxs, params)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize(
    ("bias_correction", "initial_scale"),
    # Not (True, 0.0): Optax's corrected variance begins as 0 - 0, sometimes NaN even in float64.
    [(False, 0.0), (False, 1.0), (True, 1.0)],
)
def test_centered_parameters_are_optaxs(
    bias_correction, initial_scale, eps_in_sqrt, momentum, seed, x64
):
    """Ours in float32, Optax in float64: its variance is a difference, which cancels in float32."""
    options = {
        "centered": True,
        "initial_scale": initial_scale,
        "bias_correction": bias_correction,
        "eps_in_sqrt": eps_in_sqrt,
        **momentum,
    }
    gradients, params = problem(seed)
    ours = path(rmsprop_jax.rmsprop(decaying(1e-2), **options), gradients, params)
    assert {leaf.dtype for leaf in ours.values()} == {np.dtype(np.float32)}
    optaxs = path(optax.rmsprop(decaying(1e-2), **options), *as_float64(gradients, params))
    assert_same_path(ours, optaxs, params)


def as_float64(*trees):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), trees)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_are_example_libraries(momentum):
    """jax.example_libraries: eps inside the root, the learning rate before momentum."""
    gradients, params = problem(seed=0)
    schedule = decaying(1e-2)
    init, update, get = example_libraries.rmsprop_momentum(schedule, 0.9, 1e-8, momentum)

    def step(state, g):
        t, state = state
        state = update(t, g, state)
        return (t + 1, state), get(state)

    _, expected = jax.lax.scan(step, (0, init(params)), gradients)
    ours = path(rmsprop_jax.rmsprop(schedule, momentum=momentum), gradients, params)
    assert_same_path(ours, jax.tree.map(np.asarray, expected), params)
