"""`interop.optax`: the state of ``optax.rmsprop``, inside any wrapper."""

import itertools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training import train_state

import rmsprop_jax
from rmsprop_jax import interop

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])},
    "head": [jnp.ones(3)],
}
LABELS = {"dense": {"kernel": "rms", "bias": "rest"}, "head": "rms"}
PREFIX_LABELS = {"dense": "rms", "head": "rest"}


def schedule(count):
    return 0.1 * 0.7**count


OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "nesterov": True, "eps_in_sqrt": False},
    "centered": {"centered": True, "momentum": 0.5, "decay": 0.8},
    "corrected": {"bias_correction": True, "initial_scale": 1.0, "decay": 0.99},
    "schedule": {"learning_rate": schedule, "momentum": 0.9},
    "all": {
        "learning_rate": schedule,
        "centered": True,
        "bias_correction": True,
        "initial_scale": 0.5,
        "momentum": 0.9,
    },
}
FREE = {"learning_rate": 0.1}


def gradients(step, params=PARAMS):
    """Gradients of a different size and sign at each step."""
    return jax.tree.map(
        lambda p: jnp.cos(1.3 * step + jnp.arange(p.size) - 1).reshape(p.shape) * (step + 0.5),
        params,
    )


def run(optimizer, params, state, steps):
    for step in steps:
        updates, state = optimizer.update(gradients(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, rtol=1e-9):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14), a, b)


def assert_same(a, b):
    """The same objects, not copies."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x is y


# Wrappers around optax.rmsprop, as functions of its arguments.

WRAPPERS = {
    "alone": lambda **options: optax.rmsprop(**options),
    "chain": lambda **options: optax.chain(optax.clip(1e3), optax.rmsprop(**options)),
    "nested": lambda **options: optax.chain(
        optax.clip_by_global_norm(1e6),
        optax.chain(optax.identity(), optax.chain(optax.rmsprop(**options)), optax.scale(1.0)),
        optax.ema(0.0),
    ),
    "injected": lambda **options: optax.inject_hyperparams(optax.rmsprop)(**options),
    "multi_steps": lambda **options: optax.MultiSteps(optax.rmsprop(**options), 1),
    "partition": lambda **options: partition(optax.rmsprop(**options)),
    "prefix": lambda **options: partition(optax.rmsprop(**options), PREFIX_LABELS),
}


def partition(optimizer, labels=LABELS):
    return optax.partition({"rest": optax.set_to_zero(), "rms": optimizer}, labels)


def to_continue(wrapper, state, restored):
    """The optimizer and the state to continue with: a partition is put around them again."""
    if wrapper not in ("partition", "prefix"):
        return restored.optimizer, restored.state
    labels = PREFIX_LABELS if wrapper == "prefix" else LABELS
    inner = state.inner_states | {"rms": optax.MaskedState(restored.state)}
    return partition(restored.optimizer, labels), optax.transforms.PartitionState(inner)


def to_be_given(wrapper, options):
    """The options that the state does not hold."""
    if wrapper != "injected":
        return options
    return {name: x for name, x in options.items() if isinstance(x, bool) or callable(x)}


def as_lists(node):
    """Every plain tuple as a list, as in JSON and handmade pickles; named tuples stay."""
    if isinstance(node, dict):
        return {name: as_lists(child) for name, child in node.items()}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*map(as_lists, node))
    return list(map(as_lists, node)) if isinstance(node, tuple | list) else node


def as_message_pack(state):
    """NumPy arrays in dictionaries."""
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


RESTORED_AS = {
    "as it is": (lambda state: state, lambda state, _: state),
    "dictionary": (
        flax.serialization.to_state_dict,
        lambda state, like: flax.serialization.from_state_dict(like, state),
    ),
    "message pack": (
        as_message_pack,
        lambda state, like: flax.serialization.from_state_dict(like, state),
    ),
    "lists": (
        as_lists,
        lambda state, like: jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(state)),
    ),
}


# A run of MultiSteps takes seconds.
# Each wrapper with each option, and with each way of restoring it.
CASES = [
    case
    for case in itertools.product(WRAPPERS, OPTIONS, RESTORED_AS)
    if "as it is" in case or ("all" in case and case[0] != "multi_steps")
]


@pytest.mark.parametrize(("wrapper", "options", "restored_as"), CASES)
@pytest.mark.usefixtures("x64")
def test_continues_here_and_back(wrapper, options, restored_as):
    """Three steps in Optax, three here, three in Optax equal nine in Optax."""
    options = FREE | OPTIONS[options]
    given = to_be_given(wrapper, options)
    to_raw, from_raw = RESTORED_AS[restored_as]
    start = jax.tree.map(lambda x: x.astype(float), PARAMS)
    theirs = WRAPPERS[wrapper](**options)
    params, state = run(theirs, start, theirs.init(start), range(3))
    raw = to_raw(state)

    restored = interop.optax.load(raw, params, **given)
    assert_same(restored.params, params)
    counts = callable(options["learning_rate"]) or "bias_correction" in options
    assert restored.step == (3 if counts or wrapper == "injected" else None)
    ours, ours_state = to_continue(wrapper, state, restored)
    params, ours_state = run(ours, restored.params, ours_state, range(3, 6))

    saved = interop.optax.save(raw, params, ours_state, **given)
    assert jax.tree.structure(saved) == jax.tree.structure(raw)
    assert [type(x) for x in jax.tree.leaves(saved)] == [type(x) for x in jax.tree.leaves(raw)]
    back = from_raw(saved, state)
    params, state = run(theirs, params, back, range(6, 9))

    expected, expected_state = run(theirs, start, theirs.init(start), range(9))
    # MultiSteps averages in float32.
    assert_close(params, expected, rtol=1e-6 if wrapper == "multi_steps" else 1e-9)
    if wrapper == "injected":
        assert state.count == (9 if counts else 6)
        state, expected_state = state.inner_state, expected_state.inner_state
    if wrapper not in ("multi_steps", "nested"):  # these count on their own
        assert_close(state, expected_state)


def through_orbax(state, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state")


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("wrapper", ["alone", "injected", "partition"])
def test_orbax_without_a_target(wrapper, options, tmp_path):
    options = FREE | OPTIONS[options]
    given = to_be_given(wrapper, options)
    theirs = WRAPPERS[wrapper](**options)
    params, state = run(theirs, PARAMS, theirs.init(PARAMS), range(3))
    raw = through_orbax(state, tmp_path)
    restored, expected = (interop.optax.load(x, params, **given) for x in (raw, state))
    assert restored.step == expected.step
    assert_close(restored.state, expected.state)
    zeros = jax.tree.map(jnp.zeros_like, raw)
    if wrapper == "injected":
        zeros["hyperparams"] = raw["hyperparams"]
    saved = interop.optax.save(zeros, params, restored.state, **given)
    assert jax.tree.structure(saved) == jax.tree.structure(raw)
    assert_close(interop.optax.load(saved, params, **given).state, expected.state, rtol=1e-5)


@pytest.mark.parametrize("restored_as", ["as it is", "state", "pure dictionary", "orbax"])
@pytest.mark.parametrize("wrapper", ["nested", "injected"])
def test_nnx(wrapper, restored_as, tmp_path):
    """Its states leave out empty elements; in a checkpoint each array is a variable's value."""
    options = FREE | OPTIONS["centered"]
    given = to_be_given(wrapper, options)
    theirs = WRAPPERS[wrapper](**options)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, theirs, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    for step in range(2):
        optimizer.update(model, gradients(step, params))
    raw = {
        "as it is": lambda: optimizer.opt_state,
        "state": lambda: nnx.state(optimizer),
        "pure dictionary": lambda: nnx.to_pure_dict(nnx.state(optimizer)),
        "orbax": lambda: through_orbax(nnx.state(optimizer), tmp_path),
    }[restored_as]()

    restored = interop.optax.load(raw, params, **given)
    _, state = run(theirs, params, theirs.init(params), range(2))
    expected = interop.optax.load(state, params, **given)
    assert_close(restored.state, expected.state, rtol=1e-5)
    assert restored.step == expected.step
    _, after = run(restored.optimizer, params, restored.state, range(2, 4))
    saved = interop.optax.save(raw, params, after, **given)
    assert jax.tree.structure(saved) == jax.tree.structure(raw)
    assert_close(interop.optax.load(saved, params, **given).state, after, rtol=1e-4)


# States that fit are returned as they are.


@pytest.mark.parametrize("options", ["plain", "momentum", "corrected", "schedule"])
@pytest.mark.parametrize("restored_as", RESTORED_AS)
def test_a_state_that_fits_is_returned(options, restored_as):
    options = FREE | OPTIONS[options]
    theirs = WRAPPERS["nested"](**options)
    _, state = run(theirs, PARAMS, theirs.init(PARAMS), range(3))
    raw = RESTORED_AS[restored_as][0](state)
    part = raw["1"]["1"]["0"] if isinstance(raw, dict) else raw[1][1][0]
    restored = interop.optax.load(raw, PARAMS, **options)
    if isinstance(raw, dict):  # lists in the parameters are dictionaries there
        nu = part["0"]["nu"]
        np.testing.assert_array_equal(restored.state[0].nu["head"][0], nu["head"]["0"])
    else:
        assert_same(restored.state, tuple(part))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("centered", [False, True])
def test_our_own_state_is_returned(centered, dtype):
    """No 8-bit code is rounded again."""
    options = FREE | {"centered": centered, "momentum": 0.9}
    ours = optax.chain(optax.clip(1.0), rmsprop_jax.rmsprop(**options, accumulator_dtype=dtype))
    _, state = run(ours, PARAMS, ours.init(PARAMS), range(3))
    restored = interop.optax.load(state, PARAMS, **options, accumulator_dtype=dtype)
    assert_same(restored.state, state[1])
    assert restored.step == (None if dtype is None else 3)


def test_our_own_state_without_classes():
    options = FREE | {"centered": True, "bias_correction": True}
    ours = rmsprop_jax.rmsprop(**options)
    _, state = run(ours, PARAMS, ours.init(PARAMS), range(3))
    restored = interop.optax.load(as_message_pack(state), PARAMS, **options)
    assert_close(restored.state, state)


@pytest.mark.parametrize("centered", [False, True])
def test_averages_in_bfloat16_become_float32(centered):
    options = FREE | {"centered": centered, "momentum": 0.9}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    theirs = optax.rmsprop(**options)
    _, state = run(theirs, params, theirs.init(params), range(2))
    restored = interop.optax.load(state, params, **options)
    assert {x.dtype for x in jax.tree.leaves(restored.state)} == {jnp.dtype("float32")}
    assert_close(
        restored.state[2].trace, jax.tree.map(lambda x: x.astype("float32"), state[2].trace)
    )
    saved = interop.optax.save(state, params, restored.state, **options)
    assert {x.dtype for x in jax.tree.leaves(saved)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(saved[2], state[2])


@pytest.mark.parametrize("centered", [False, True])
def test_averages_of_complex_parameters(centered):
    """Optax's average of |g|**2 is complex, with an imaginary part of zero; ours is real."""
    options = FREE | {"centered": centered}
    params = {"w": jnp.array([1 + 2j, 3 - 1j])}
    theirs = optax.rmsprop(**options)
    _, state = theirs.update(params, theirs.init(params))
    restored = interop.optax.load(state, params, **options)
    assert restored.state[0][-1]["w"].dtype == jnp.float32
    restored.optimizer.update(params, restored.state)
    saved = interop.optax.save(state, params, restored.state, **options)
    assert saved[0].nu["w"].dtype == jnp.complex64
    assert_close(saved, state, rtol=1e-6)


# Names.


@pytest.mark.parametrize("restored_as", ["as it is", "dictionary"])
@pytest.mark.parametrize("centered", [False, True])
def test_keys_with_slashes(centered, restored_as):
    """Haiku's "mlp/w" is a different leaf from "w" in "mlp"."""
    options = FREE | {"centered": centered, "momentum": 0.9, "accumulator_dtype": "bfloat16"}
    params = {"mlp/w": jnp.zeros(2), "mlp": {"w": jnp.zeros(2), "/b": jnp.zeros(2)}, "mlp/": {}}
    params["mlp/"]["b"] = jnp.zeros(2)
    theirs = optax.rmsprop(0.1, centered=centered, momentum=0.9)
    different = jax.tree.unflatten(
        jax.tree.structure(params), [jnp.full(2, 2.0**i) for i in range(4)]
    )
    _, state = theirs.update(different, theirs.init(params))
    raw = RESTORED_AS[restored_as][0](state)
    restored = interop.optax.load(raw, params, **options)
    assert_close(
        restored.state[2].trace, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state[2].trace)
    )
    saved = interop.optax.save(theirs.init(params), params, restored.state, **options)
    assert_close(saved, state, rtol=0.01)


def test_parameters_with_the_names_of_state_fields():
    params = {"nu": {"count": jnp.ones(2), "trace": jnp.ones(1)}, "inner_state": jnp.ones(3)}
    theirs = optax.MultiSteps(optax.rmsprop(0.1, momentum=0.9, centered=True), 1)
    options = FREE | {"momentum": 0.9, "centered": True}
    _, state = run(theirs, params, theirs.init(params), range(2))
    for raw in (state, as_message_pack(state)):
        restored = interop.optax.load(raw, params, **options)
        assert_close(restored.state[2], state.inner_opt_state[2])
        assert_close(restored.state[0].mu, state.inner_opt_state[0].mu)


# inject_hyperparams.


def injected(**options):
    optimizer = optax.inject_hyperparams(optax.rmsprop)(**options)
    return run(optimizer, PARAMS, optimizer.init(PARAMS), range(3))[1]


def test_hyperparameters_are_read_and_given_ones_win():
    state = injected(learning_rate=0.25, decay=0.75, momentum=0.5)
    for raw in (state, as_message_pack(state)):
        restored = interop.optax.load(raw, PARAMS, eps=0.125)
        assert restored.hyperparameters == (
            {
                "learning_rate": 0.25,
                "decay": 0.75,
                "momentum": 0.5,
                "eps": 0.125,
                "initial_scale": 0.0,
                "accumulator_dtype": None,
            },
        )
        assert restored.step == 3
        updates, _ = restored.optimizer.update(gradients(3), restored.state, PARAMS)
        alone = optax.rmsprop(0.25, decay=0.75, momentum=0.5, eps=0.125)
        assert_close(updates, alone.update(gradients(3), state.inner_state)[0], rtol=1e-5)


def test_a_rate_changed_by_hand_can_become_a_schedule():
    """It follows the wrapper's own counter, which is also written back."""
    state = injected(learning_rate=0.25)
    restored = interop.optax.load(state, PARAMS, learning_rate=schedule)
    assert restored.state[1].count == 3
    _, after = run(restored.optimizer, PARAMS, restored.state, range(3, 5))
    saved = interop.optax.save(state, PARAMS, after, learning_rate=schedule)
    assert saved.count == 5
    assert saved.hyperparams["learning_rate"] == 0.25


def test_a_schedule_without_a_state_is_a_schedule():
    state = injected(learning_rate=0.25)._replace(hyperparams_states={"learning_rate": ()})
    for raw in (state, as_message_pack(state)):
        with pytest.raises(ValueError, match="learning_rate follows a schedule"):
            interop.optax.load(raw, PARAMS)
        restored = interop.optax.load(raw, PARAMS, learning_rate=schedule)
        assert restored.state[1].count == 3


def test_hyperparameters_of_a_users_own_function_are_not_read():
    own = optax.inject_hyperparams(lambda decay, rate: optax.rmsprop(rate, decay=1 - decay))
    state = own(decay=0.1, rate=0.1).init(PARAMS)
    with pytest.raises(TypeError, match="learning_rate"):
        interop.optax.load(state, PARAMS)
    restored = interop.optax.load(state, PARAMS, learning_rate=0.1)
    assert restored.hyperparameters == ({"learning_rate": 0.1, "accumulator_dtype": None},)


# Masks.


@pytest.mark.parametrize("labels", [LABELS, PREFIX_LABELS], ids=["leaves", "prefix"])
@pytest.mark.parametrize("options", ["plain", "centered"])
def test_masked_leaves_stay_masked(options, labels):
    options = FREE | OPTIONS[options]
    theirs, ours = (partition(f(**options), labels) for f in (optax.rmsprop, rmsprop_jax.rmsprop))
    _, state = run(theirs, PARAMS, theirs.init(PARAMS), range(2))
    expected = ours.init(PARAMS).inner_states["rms"].inner_state
    for raw in (state, as_message_pack(state), state.inner_states["rms"]):
        restored = interop.optax.load(raw, PARAMS, **options)
        assert jax.tree.structure(restored.state) == jax.tree.structure(expected)
    # For all gradients it would have to invent an average.
    with pytest.raises(ValueError, match="updates"):
        restored.optimizer.update(gradients(2), restored.state, PARAMS)


def test_params_may_be_only_the_trained_ones():
    theirs = partition(optax.rmsprop(0.1), PREFIX_LABELS)
    _, state = run(theirs, PARAMS, theirs.init(PARAMS), range(2))
    trained = {"dense": PARAMS["dense"]}
    restored = interop.optax.load(state, trained, learning_rate=0.1)
    nu = state.inner_states["rms"].inner_state[0].nu
    assert_close(restored.state[0].nu, {"dense": nu["dense"]})
    after, after_state = run(restored.optimizer, trained, restored.state, range(2, 4))
    expected, expected_state = run(theirs, PARAMS, state, range(2, 4))
    assert_close(after["dense"], expected["dense"], rtol=1e-6)
    saved = interop.optax.save(state, trained, after_state, learning_rate=0.1)
    assert_close(saved, expected_state, rtol=1e-6)


def test_one_of_two_parts():
    both = optax.partition(
        {"rest": optax.rmsprop(0.2, momentum=0.5), "rms": optax.rmsprop(0.1)}, LABELS
    )
    source = both.init(PARAMS)
    with pytest.raises(ValueError, match="2 RMSprop parts: pass one of") as raised:
        interop.optax.load(source, PARAMS, learning_rate=0.1)
    paths = eval(str(raised.value).partition("pass one of ")[2])
    parts = [eval(path, {"source": source}) for path in paths]
    assert_same(interop.optax.load(parts[1], PARAMS, learning_rate=0.1).state, parts[1])
    restored = interop.optax.load(parts[0], PARAMS, learning_rate=0.2, momentum=0.5)
    assert_same(restored.state, parts[0])


def test_leaves_that_cannot_be_trained_have_no_state():
    model = {"w": jnp.ones(2), "size": 3, "activation": jax.nn.relu, "none": None}
    ours = rmsprop_jax.rmsprop(0.1, centered=True)
    _, state = ours.update(
        {"w": jnp.ones(2), "size": None, "activation": None, "none": None}, ours.init(model)
    )
    restored = interop.optax.load(state, model, **FREE, centered=True)
    assert_same(restored.state, state)


# Everything else in the state.


def test_everything_else_is_the_targets():
    theirs = optax.chain(optax.ema(0.5), optax.rmsprop(0.1), optax.add_noise(0.0, 0.0, 1))
    _, target = run(theirs, PARAMS, theirs.init(PARAMS), range(2))
    before = jax.tree.map(np.array, target[1])
    ours = rmsprop_jax.rmsprop(0.1)
    _, state = run(ours, PARAMS, ours.init(PARAMS), range(4))
    saved = interop.optax.save(target, PARAMS, state, **FREE)
    assert_same((saved[0], saved[2]), (target[0], target[2]))
    assert_close(saved[1], state)
    assert_close(target[1], before)


def test_train_state():
    theirs = optax.chain(optax.clip(1.0), optax.rmsprop(0.1, centered=True))
    given = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=theirs)
    given = given.apply_gradients(grads=gradients(0))
    restored = interop.optax.load(given, PARAMS, **FREE, centered=True)
    saved = interop.optax.save(given, PARAMS, restored.state, **FREE, centered=True)
    assert isinstance(saved, train_state.TrainState)
    assert saved.step == 1
    assert_close(saved, given, rtol=1e-6)


@pytest.mark.parametrize("count", [3, np.int64(3), np.array(3), np.float32(3), jnp.asarray(3)])
@pytest.mark.parametrize("centered", [False, True])
def test_counts_of_other_kinds(count, centered):
    options = FREE | {"bias_correction": True, "centered": centered}
    state = optax.rmsprop(**options).init(PARAMS)
    state = optax.tree_utils.tree_set(state, count=count)
    restored = interop.optax.load(state, PARAMS, **options)
    assert restored.step == 3
    assert restored.state[0].count == 3
    assert restored.state[0].count.dtype == jnp.int32


def test_counts_may_differ_if_nothing_is_converted():
    state = two_counts(3, 5)
    restored = interop.optax.load(state, PARAMS, learning_rate=schedule, bias_correction=True)
    assert_same(restored.state, state)
    assert restored.step == 5


def two_counts(first, second, **options):
    state = optax.rmsprop(schedule, bias_correction=True, **options).init(PARAMS)
    counts = (jnp.asarray(count, jnp.int32) for count in (first, second))
    state = [
        part if count is None else part._replace(count=count)
        for part, count in zip(state, (*counts, None), strict=True)
    ]
    return tuple(state)


def test_float64_is_rounded_only_when_asked():
    state = as_message_pack(optax.rmsprop(0.1).init(PARAMS))
    state["0"]["nu"]["dense"]["bias"] = np.full(1, 0.1)
    with pytest.raises(ValueError, match="nu of dense/bias is float64, which float32"):
        interop.optax.load(state, PARAMS, **FREE)
    restored = interop.optax.load(state, PARAMS, **FREE, accumulator_dtype="float32")
    assert restored.state[0].nu["dense"]["bias"] == np.float32(0.1)


# Bad input.


def changed(state, position, value):
    """The state with another value for one array of its averages."""
    index, field, name = position
    tree = getattr(state[index], field) | {name: value}
    parts = list(state)
    parts[index] = parts[index]._replace(**{field: tree})
    return tuple(parts)


FLAT = {"a": jnp.ones(2), "b": jnp.ones(3)}
STATE = optax.rmsprop(0.1).init(FLAT)
CENTERED = optax.rmsprop(0.1, centered=True, momentum=0.9).init(FLAT)
CORRECTED = optax.rmsprop(0.1, bias_correction=True)


def load(state, params=FLAT, **options):
    return interop.optax.load(state, params, **FREE | options)


def save(target, state=None, **options):
    ours = rmsprop_jax.rmsprop(**FREE | options).init(FLAT)
    return interop.optax.save(target, FLAT, ours if state is None else state, **FREE | options)


REJECTED = {
    "no RMSprop": (
        lambda: load(optax.chain(optax.clip(1.0), optax.adam(0.1)).init(FLAT)),
        ValueError,
        r"source has no state of optax.rmsprop.*ScaleByAdamState",
    ),
    "no RMSprop in a dictionary": (
        lambda: load(as_message_pack(optax.adam(0.1).init(FLAT))),
        ValueError,
        r"source has no state of optax.rmsprop.*\{count, mu, nu\}",
    ),
    "AdamW, a chain of three with the same fields": (
        lambda: load(optax.adamw(0.1).init(FLAT), centered=True, bias_correction=True),
        ValueError,
        "source has no state of optax.rmsprop.*ScaleByAdamState",
    ),
    "codes without their classes": (
        lambda: load(
            as_message_pack(rmsprop_jax.rmsprop(0.1, accumulator_dtype="float8_e5m2").init(FLAT)),
            accumulator_dtype="float8_e5m2",
        ),
        ValueError,
        r"source has no state of optax.rmsprop.*\{count, nu_quantized\}",
    ),
    "not a state": (lambda: load(None), ValueError, "source has no state of optax.rmsprop"),
    "an array": (lambda: load(jnp.ones(3)), ValueError, "source has no state.*ArrayImpl"),
    "averages outside of a chain of three": (
        lambda: load(optax.chain(optax.scale_by_rms(), optax.scale(-0.1)).init(FLAT)),
        ValueError,
        "source has no state.*ScaleByRmsState",
    ),
    "two parts": (
        lambda: load([STATE, STATE]),
        ValueError,
        r"source has 2 RMSprop parts: pass one of \['source\[0\]', 'source\[1\]'\]",
    ),
    "two parts in the target": (
        lambda: save([STATE, STATE]),
        ValueError,
        r"target has 2 RMSprop parts: pass one of \['target\[0\]', 'target\[1\]'\]",
    ),
    "two parts in the state": (
        lambda: save(STATE, [STATE, STATE]),
        ValueError,
        "state has 2 RMSprop parts",
    ),
    "momentum not in the state": (
        lambda: load(STATE, momentum=0.9),
        ValueError,
        r"source does not fit: missing \['trace of a', 'trace of b'\], unexpected \[\]",
    ),
    "momentum not given": (
        lambda: load(CENTERED, centered=True),
        ValueError,
        r"missing \[\], unexpected \['trace of a', 'trace of b'\]",
    ),
    "centered not given": (
        lambda: load(CENTERED, momentum=0.9),
        ValueError,
        r"unexpected \['mu of a', 'mu of b'\].*check.*centered",
    ),
    "bias_correction not given": (
        lambda: load(CORRECTED.init(FLAT)),
        ValueError,
        r"unexpected \['count'\].*bias_correction",
    ),
    "a schedule without a count": (
        lambda: load(STATE, learning_rate=schedule),
        ValueError,
        r"missing \['count'\].*schedule",
    ),
    "params with another leaf": (
        lambda: load(STATE, FLAT | {"c": jnp.ones(1)}),
        ValueError,
        r"missing \['nu of c'\]",
    ),
    "params without a leaf": (
        lambda: load(STATE, {"a": FLAT["a"]}),
        ValueError,
        r"unexpected \['nu of b'\]",
    ),
    "params of another shape": (
        lambda: load(STATE, FLAT | {"b": jnp.ones(4)}),
        ValueError,
        r"source: nu of b has shape \(3,\), but must have \(4,\)",
    ),
    "target of another shape": (
        lambda: save(changed(STATE, (0, "nu", "b"), jnp.ones(4))),
        ValueError,
        r"target: nu of b has shape \(4,\)",
    ),
    "momentum without a leaf": (
        lambda: load(changed(CENTERED, (2, "trace", "b"), None), centered=True, momentum=0.9),
        ValueError,
        r"missing \['trace of b'\]",
    ),
    "negative": (
        lambda: load(changed(STATE, (0, "nu", "b"), -jnp.ones(3))),
        ValueError,
        "source: nu of b is an average of squares and must not be negative",
    ),
    "negative variance": (
        lambda: load(
            changed(
                rmsprop_jax.rmsprop(0.1, centered=True).init(FLAT), (0, "var", "b"), -jnp.ones(3)
            ),
            centered=True,
        ),
        ValueError,
        "source: var of b is an average of squares and must not be negative",
    ),
    "infinite": (
        lambda: load(
            changed(CENTERED, (2, "trace", "a"), jnp.full(2, jnp.inf)), centered=True, momentum=0.9
        ),
        ValueError,
        "source: trace of a must be finite, 2 of its 2",
    ),
    "nan in params": (
        lambda: load(STATE, FLAT | {"a": jnp.full(2, jnp.nan)}),
        ValueError,
        "params: a must be finite",
    ),
    "integers": (
        lambda: load(changed(STATE, (0, "nu", "b"), jnp.ones(3, int))),
        TypeError,
        "source: nu of b must be a floating-point array, got dtype int32",
    ),
    "negative count": (
        lambda: load(
            optax.tree_utils.tree_set(CORRECTED.init(FLAT), count=-1), bias_correction=True
        ),
        ValueError,
        "source: count of averages must be a whole number >= 0, got array.-1",
    ),
    "fractional count": (
        lambda: load(
            optax.tree_utils.tree_set(CORRECTED.init(FLAT), count=np.float32(1.5)),
            bias_correction=True,
        ),
        TypeError,
        "source: count of averages must be a whole number >= 0, got .*1.5",
    ),
    "count too large": (
        lambda: load(
            optax.tree_utils.tree_set(CORRECTED.init(FLAT), count=np.int64(2**40)),
            bias_correction=True,
        ),
        ValueError,
        "step must be at most 2147483647",
    ),
    "counts that differ": (
        lambda: interop.optax.load(
            two_counts(3, 5, centered=True),
            PARAMS,
            learning_rate=schedule,
            bias_correction=True,
            centered=True,
        ),
        ValueError,
        "source: all counts must be equal.*'averages': 3, 'learning rate': 5",
    ),
    "counts that differ in the state": (
        lambda: interop.optax.save(
            two_counts(0, 0),
            PARAMS,
            two_counts(3, 5),
            learning_rate=schedule,
            bias_correction=True,
        ),
        ValueError,
        "state: all counts must be equal.*'averages': 3, 'learning rate': 5",
    ),
    "schedule not given": (
        lambda: interop.optax.load(injected(learning_rate=schedule), PARAMS),
        ValueError,
        "source: learning_rate follows a schedule in inject_hyperparams.*pass learning_rate=",
    ),
    "schedule not given to save": (
        lambda: interop.optax.save(
            injected(learning_rate=schedule), PARAMS, optax.rmsprop(0.1).init(PARAMS)
        ),
        ValueError,
        "target: learning_rate follows a schedule",
    ),
    "Optax's state instead of ours": (
        lambda: save(CENTERED, CENTERED, centered=True, momentum=0.9),
        ValueError,
        "state does not fit: missing .'var of a'",
    ),
    "ours instead of Optax's": (
        lambda: save(rmsprop_jax.rmsprop(0.1, centered=True).init(FLAT), centered=True),
        ValueError,
        "target does not fit: missing .'nu of a'",
    ),
    "a state with another accumulator_dtype": (
        lambda: save(STATE, rmsprop_jax.rmsprop(0.1, accumulator_dtype="bfloat16").init(FLAT)),
        ValueError,
        "state does not fit.*accumulator_dtype",
    ),
    "target that is masked elsewhere": (
        lambda: save(changed(STATE, (0, "nu", "b"), optax.MaskedNode())),
        ValueError,
        r"state does not fit: missing \[\], unexpected \['nu of b'\]",
    ),
    "target that cannot hold it": (
        lambda: save(
            jax.tree.map(lambda x: x.astype(jnp.float16), STATE),
            changed(STATE, (0, "nu", "b"), jnp.full(3, 1e6)),
        ),
        ValueError,
        "nu of b, in float16, must be finite",
    ),
    "weight decay": (lambda: load(STATE, weight_decay=0.1), TypeError, "weight_decay"),
    "unknown hyperparameter": (lambda: load(STATE, lr=0.1), TypeError, "lr"),
    "complex for real": (
        lambda: load(
            changed(CENTERED, (2, "trace", "a"), jnp.ones(2, complex)), centered=True, momentum=0.9
        ),
        ValueError,
        "source: trace of a is complex64, which float32",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_bad_input_is_rejected(case):
    call, error, message = REJECTED[case]
    with pytest.raises(error, match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()[0]) < 300
