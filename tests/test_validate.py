"""Bad input, in two tables: what raises when built, and what raises when traced."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bad_values import (
    INF,
    NAN,
    NOT_A_NUMBER,
    NOT_A_SIZE,
    NOT_FINITE,
    NOT_IN_UNIT_INTERVAL,
    name_of,
)

import rmsprop_jax
from rmsprop_jax import _transform, rmsprop, scale_by_rms, scale_by_stddev

# The function, the argument, a bad value, the error, and what its message must say is allowed.
BAD_WHEN_BUILT = [
    *((rmsprop, "learning_rate", bad, ValueError, "finite") for bad in NOT_FINITE),
    *((rmsprop, "learning_rate", bad, TypeError, "or a schedule") for bad in NOT_A_NUMBER),
    *((rmsprop, "weight_decay", bad, ValueError, ">= 0") for bad in NOT_A_SIZE),
    *((rmsprop, "weight_decay", bad, TypeError, ">= 0") for bad in NOT_A_NUMBER if bad is not None),
    *((rmsprop, "momentum", bad, ValueError, "< 1") for bad in NOT_IN_UNIT_INTERVAL),
    *((rmsprop, "momentum", bad, TypeError, "< 1") for bad in NOT_A_NUMBER if bad is not None),
    (rmsprop, "nesterov", True, ValueError, "momentum"),
    (rmsprop, "learning_rate", jnp.ones(3), ValueError, "one number"),
    (rmsprop, "centered", 1, TypeError, "True or False"),
    (rmsprop, "nesterov", None, TypeError, "True or False"),
    *(
        case
        for function in (rmsprop, scale_by_rms, scale_by_stddev)
        for case in [
            *((function, "decay", bad, ValueError, "< 1") for bad in NOT_IN_UNIT_INTERVAL),
            *((function, "decay", bad, TypeError, "< 1") for bad in NOT_A_NUMBER),
            *((function, "eps", bad, ValueError, ">= 0") for bad in NOT_A_SIZE),
            *((function, "eps", bad, TypeError, ">= 0") for bad in NOT_A_NUMBER),
            *((function, "initial_scale", bad, ValueError, ">= 0") for bad in NOT_A_SIZE),
            *((function, "initial_scale", bad, TypeError, ">= 0") for bad in NOT_A_NUMBER),
            (function, "eps", jnp.ones(3), ValueError, "one number"),
            (function, "eps", 10**400, ValueError, "finite"),
            (function, "decay", optax.constant_schedule(0.9), TypeError, "inject_hyperparams"),
            (function, "eps_in_sqrt", "no", TypeError, "True or False"),
            (function, "bias_correction", 0, TypeError, "True or False"),
            (function, "accumulator_dtype", "int8", ValueError, "float32"),
            (function, "accumulator_dtype", jnp.float16, ValueError, "float32"),
            (function, "accumulator_dtype", "no dtype", ValueError, "float32"),
            (function, "accumulator_dtype", [("a", "f4", "x")], ValueError, "float32"),
            (function, "accumulator_dtype", jnp.float64, ValueError, "jax_enable_x64"),
        ]
    ),
]


@pytest.mark.parametrize(
    ("function", "argument", "bad", "error", "allowed"), BAD_WHEN_BUILT, ids=name_of
)
def test_rejected_when_built(function, argument, bad, error, allowed):
    required = {"learning_rate": 0.1} if function is rmsprop else {}
    with pytest.raises(error) as raised:
        function(**required | {argument: bad})
    message = str(raised.value)
    assert message.startswith(argument)
    assert allowed in message
    assert len(message.splitlines()[0]) < 300
    given = " ".join(repr(bad).split())[:77]
    assert str(np.shape(bad)) in message or given in message or "jax_enable_x64" in message


def tree():
    return {"w": jnp.ones((2, 3)), "b": [jnp.ones(3), jnp.ones(())]}


def state_of(params=None, **options):
    return rmsprop(**{"learning_rate": 0.1} | options).init(tree() if params is None else params)


def without(key):
    return {k: v for k, v in tree().items() if k != key}


# A call, its error, and what the message must name.
BAD_WHEN_TRACED = {
    "integer gradient": (
        lambda: rmsprop(0.1).update(tree() | {"w": jnp.ones((2, 3), int)}, state_of()),
        TypeError, ["updates['w']", "int32"],
    ),
    "float0 gradient": (
        lambda: rmsprop(0.1).update(
            tree() | {"w": np.zeros((2, 3), jax.dtypes.float0)}, state_of(), tree()
        ),
        TypeError, ["updates['w']", "float0"],
    ),
    "gradient that broadcasts": (
        lambda: rmsprop(0.1).update(tree() | {"w": jnp.ones((1, 3))}, state_of(), tree()),
        ValueError, ["updates['w']", "(1, 3)", "(2, 3)"],
    ),
    "gradient that broadcasts, no params": (
        lambda: rmsprop(0.1).update(tree() | {"w": jnp.ones((1, 3))}, state_of()),
        ValueError, ["updates['w']", "nu['w']", "(1, 3)", "(2, 3)"],
    ),
    "scalar for a vector": (
        lambda: rmsprop(0.1).update(tree() | {"b": [1.0, 1.0]}, state_of(), tree()),
        ValueError, ["updates['b'][0]", "()", "(3,)"],
    ),
    "missing leaf": (
        lambda: rmsprop(0.1).update(without("b"), state_of(), tree()),
        ValueError, ["updates", "missing leaves", "['b'][0]", "['b'][1]"],
    ),
    "gradient of an integer parameter": (
        lambda: rmsprop(0.1).update(
            tree() | {"n": jnp.ones(3)}, state_of(tree() | {"n": jnp.arange(3)}),
            tree() | {"n": jnp.arange(3)},
        ),
        TypeError, ["updates['n']", "params['n']", "int32", "None"],
    ),
    "gradient of an integer parameter, no params": (
        lambda: rmsprop(0.1).update(
            tree() | {"n": jnp.ones(3)}, state_of(tree() | {"n": jnp.arange(3)})
        ),
        ValueError, ["updates['n']", "None as its gradient"],
    ),
    "extra leaf": (
        lambda: rmsprop(0.1).update(tree() | {"x": jnp.ones(1)}, state_of(), tree()),
        ValueError, ["unexpected leaves", "['x']"],
    ),
    "other container": (
        lambda: rmsprop(0.1).update(tree() | {"b": tuple(tree()["b"])}, state_of(), tree()),
        ValueError, ["updates", "containers differ"],
    ),
    "parameters of another model, where weights decay": (
        lambda: rmsprop(0.1, weight_decay=0.1).update(
            tree(), state_of(weight_decay=0.1), without("b")
        ),
        ValueError, ["updates", "params", "['b'][0]"],
    ),
    "parameters of another shape, where weights decay": (
        lambda: rmsprop(0.1, weight_decay=0.1).update(
            tree(), state_of(weight_decay=0.1), tree() | {"w": jnp.ones((3, 2))}
        ),
        ValueError, ["updates['w']", "params['w']", "(2, 3)", "(3, 2)"],
    ),
    "state of another model": (
        lambda: rmsprop(0.1).update(tree(), state_of(without("b"))),
        ValueError, ["state", "missing leaves", "[0].nu['b'][0]"],
    ),
    "state of another shape": (
        lambda: rmsprop(0.1).update(tree(), state_of(tree() | {"w": jnp.ones((3, 2))})),
        ValueError, ["nu['w'] in the state", "(3, 2)", "(2, 3)"],
    ),
    "momentum of another shape": (
        lambda: rmsprop(0.1, momentum=0.9).update(
            tree(),
            (state_of()[0], *state_of(tree() | {"w": jnp.ones((3, 2))}, momentum=0.9)[1:]),
        ),
        ValueError, ["trace['w'] in the state", "(3, 2)", "(2, 3)"],
    ),
    "a leaf of another library": (
        lambda: rmsprop(0.1).init({"w": types.SimpleNamespace(dtype="its own", shape=())}),
        TypeError, ["params['w']", "its own"],
    ),
    "state and params swapped": (
        lambda: rmsprop(0.1).update(tree(), tree(), state_of()),
        ValueError, ["updates", "params"],
    ),
    "schedule that returns an array": (
        lambda: rmsprop(lambda _: jnp.ones(3)).update(
            tree(), state_of(learning_rate=lambda _: 0.1)
        ),
        ValueError, ["learning_rate(", "one number", "(3,)"],
    ),
    "schedule that returns NaN": (
        lambda: rmsprop(lambda _: NAN).update(tree(), state_of(learning_rate=lambda _: 0.1)),
        ValueError, ["learning_rate(", "a finite number", "nan"],
    ),
    "schedule that returns infinity": (
        lambda: rmsprop(lambda _: INF).update(tree(), state_of(learning_rate=lambda _: 0.1)),
        ValueError, ["learning_rate(", "a finite number", "inf"],
    ),
    "schedule that returns a schedule": (
        lambda: rmsprop(optax.constant_schedule).update(
            tree(), state_of(learning_rate=lambda _: 0.1)
        ),
        TypeError, ["learning_rate(", "a finite number"],
    ),
    "schedule that was not called": (
        lambda: rmsprop(optax.cosine_decay_schedule),
        TypeError, ["learning_rate must be", "cosine_decay_schedule", "decay_steps"],
    ),
    "schedule that returns None": (
        lambda: rmsprop(lambda _: None).update(tree(), state_of(learning_rate=lambda _: 0.1)),
        TypeError, ["learning_rate(", "a finite number", "None"],
    ),
    "uncentred state": (
        lambda: rmsprop(0.1, centered=True).update(tree(), state_of()),
        ValueError, ["state", "[0].mu['w']", "[0].nu['w']"],
    ),
    "centred state": (
        lambda: rmsprop(0.1).update(tree(), state_of(centered=True)),
        ValueError, ["state", "[0].mu['w']", "[0].nu['w']"],
    ),
    "state with momentum": (
        lambda: rmsprop(0.1).update(tree(), state_of(momentum=0.9)),
        ValueError, ["state", "unexpected leaves", "[2].trace['w']"],
    ),
    "state without momentum": (
        lambda: rmsprop(0.1, momentum=0.9).update(tree(), state_of()),
        ValueError, ["state", "missing leaves", "[2].trace['w']"],
    ),
    "state with a count": (
        lambda: rmsprop(0.1).update(tree(), state_of(bias_correction=True)),
        ValueError, ["state", "unexpected leaves", "[0].count"],
    ),
    "state without a count": (
        lambda: scale_by_stddev(bias_correction=True).update(
            tree(), scale_by_stddev().init(tree())
        ),
        ValueError, ["state", "missing leaves", ".count"],
    ),
    "state of a schedule": (
        lambda: rmsprop(0.1).update(tree(), state_of(learning_rate=optax.constant_schedule(0.1))),
        ValueError, ["state", "unexpected leaves", "[1].count"],
    ),
    "real parameters, complex gradients": (
        lambda: scale_by_stddev().update(jnp.ones(3, complex), scale_by_stddev().init(jnp.ones(3))),
        ValueError, ["state: mu", "float32", "complex64"],
    ),
    "weight decay without params": (
        lambda: rmsprop(0.1, weight_decay=0.1).update(tree(), state_of(weight_decay=0.1)),
        ValueError, ["weight_decay=0.1", "params", "None"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WHEN_TRACED)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_rejected_when_traced(case, jit):
    call, error, named = BAD_WHEN_TRACED[case]
    with pytest.raises(error) as raised:
        jax.eval_shape(call) if jit else call()
    for name in named:
        assert name in str(raised.value)
    assert len(str(raised.value).splitlines()[0]) < 300


@pytest.mark.parametrize(
    "bad",
    [
        {"momentum": 0.9},
        {"centered": True},
        {"bias_correction": True},
        {"learning_rate": optax.constant_schedule(0.1)},
    ],
    ids=["momentum", "centered", "bias_correction", "schedule"],
)
@pytest.mark.parametrize("params", [None, tree()], ids=["without params", "with params"])
def test_state_of_another_configuration(params, bad):
    """Either way round, with and without parameters to compare with."""
    for ours, other in (({}, bad), (bad, {})):
        optimizer = rmsprop(**{"learning_rate": 0.1} | ours)
        with pytest.raises(ValueError, match="state must have the structure of init"):
            optimizer.update(tree(), state_of(**other), params)


@pytest.mark.parametrize("params", [None, tree()], ids=["without params", "with params"])
def test_state_of_another_model(params):
    state = state_of(tree() | {"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"nu\['w'\] in the state"):
        rmsprop(0.1).update(tree(), state, params)


@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_array_of_weight_decay_without_params(transform):
    optimizer = optax.inject_hyperparams(rmsprop)(learning_rate=0.1, weight_decay=0.1)
    state = optimizer.init(tree())
    with pytest.raises(ValueError, match=r"weight_decay.* needs params, got None"):
        transform(optimizer.update)(tree(), state)


def test_message_about_one_leaf_of_five_thousand():
    params = {f"layer {i}": jnp.ones(()) for i in range(5000)}
    fewer = {k: v for k, v in params.items() if k != "layer 7"}
    other = {f"block {i}": jnp.ones(()) for i in range(5000)}
    state = rmsprop(0.1).init(params)
    for updates in (fewer, other):
        with pytest.raises(ValueError, match=r"nu\['layer") as raised:
            rmsprop(0.1).update(updates, state)
        assert len(str(raised.value)) < 400


@pytest.mark.parametrize("params", [None, tree()], ids=["without params", "with params"])
def test_shapes_are_checked_without_chex(params):
    """Nothing broadcasts even if chex's assertions are disabled."""
    chex.disable_asserts()
    try:
        with pytest.raises(ValueError, match=r"\(1, 3\)"):
            rmsprop(0.1).update(tree() | {"w": jnp.ones((1, 3))}, state_of(), params)
    finally:
        chex.enable_asserts()


def test_chex_is_the_second_line_of_defence():
    """It catches shapes that the package's own checks did not see."""
    with pytest.raises(AssertionError, match="Chex"):
        _transform._rms_step(
            jnp.ones(4), jnp.ones((1, 3)), jnp.ones((2, 3)), None,
            eps_in_sqrt=True, bias_correction=False,
        )  # fmt: skip


def test_state_of_another_accumulator_dtype_is_rejected(x64):
    params = jnp.ones(3, jnp.float32)
    state = scale_by_rms(accumulator_dtype="float32").init(params)
    with pytest.raises(ValueError, match=r"state: nu is float32, but must be float64"):
        scale_by_rms(accumulator_dtype="float64").update(params, state)


def test_bfloat16_average_of_optax_is_rejected():
    """Optax rounds it to nearest, so it would stall."""
    params = jnp.ones(3, jnp.bfloat16)
    state = optax.scale_by_rms().init(params)
    with pytest.raises(ValueError, match=r"state: nu is bfloat16, but must be float32.*cast"):
        scale_by_rms().update(params, state)


@pytest.mark.parametrize("bad", ["all", 3, {"w": 0.5, "b": 1}], ids=repr)
@pytest.mark.parametrize("called", [False, True])
def test_mask_that_is_not_of_booleans(called, bad):
    def update():
        optimizer = rmsprop(0.1, weight_decay=0.1, mask=(lambda _: bad) if called else bad)
        optimizer.update(tree(), optimizer.init(tree()), tree())

    with pytest.raises(TypeError, match="mask must be True or False, a tree of them"):
        update()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"count": jnp.arange(3)}, r"step counter .* int32 of shape \(3,\)"),
        ({"count": jnp.float32(2)}, r"step counter .* float32 of shape \(\)"),
        (
            {"nu": {"w": [0.0, 0.0]}},
            r"state must have the structure of .*missing leaves: nu\['w'\]",
        ),
        (
            {"nu": {"w": {"deep": jnp.ones(2)}}},
            r"state must have the structure of .*nu\['w'\]\['deep'\]",
        ),
    ],
    ids=str,
)
def test_state_with_bad_contents(bad, named):
    params = {"w": jnp.ones(2)}
    tx = scale_by_rms(bias_correction=True)
    with pytest.raises(ValueError, match=named.replace("leaves: nu", "leaves: .nu")):
        tx.update(params, tx.init(params)._replace(**bad))


def test_message_for_a_centred_state_of_optax():
    state = optax.rmsprop(0.1, centered=True).init(tree())
    with pytest.raises(ValueError, match=r"interop\.optax converts"):
        rmsprop(0.1, centered=True).update(tree(), state)


def test_mask_without_weight_decay():
    with pytest.raises(ValueError, match="mask must come with weight_decay"):
        rmsprop(0.1, mask={"w": True, "b": False})


ALLOWED = [
    {"learning_rate": 0},
    {"learning_rate": -0.1},
    {"learning_rate": optax.constant_schedule(-0.1)},
    {"learning_rate": 0.1, "weight_decay": 0.1, "mask": {"w": True, "b": False}},
    {"learning_rate": 0.0},
    {"learning_rate": np.float32(0.1)},
    {"learning_rate": jnp.array(0.1, jnp.bfloat16)},
    {"learning_rate": optax.cosine_decay_schedule(0.1, 10)},
    {"learning_rate": 0.1, "decay": 0, "eps": 0, "momentum": 0},
    {"learning_rate": 0.1, "decay": np.array(0.99), "eps": np.float16(1e-3)},
    {"learning_rate": 0.1, "accumulator_dtype": "float32"},
    {"learning_rate": 0.1, "accumulator_dtype": np.dtype("float32"), "centered": np.True_},
]


@pytest.mark.parametrize("options", ALLOWED, ids=range(len(ALLOWED)))
def test_allowed(options):
    optimizer = rmsprop_jax.rmsprop(**options)
    updates, _ = optimizer.update(tree(), optimizer.init(tree()), tree())
    rate = options["learning_rate"]
    expected_zero = not callable(rate) and rate == 0
    assert all((leaf == 0).all() == expected_zero for leaf in jax.tree.leaves(updates))


def test_traced_values_pass():
    """They have no value yet, so a bad one cannot be rejected."""

    @jax.jit
    def first_update(rate, decay, eps, momentum, weight_decay):
        optimizer = rmsprop(rate, decay, eps, momentum=momentum, weight_decay=weight_decay)
        return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))[0]

    assert first_update(-1.0, 0.75, 0.0, 0.5, 0.0) == pytest.approx(2.0)
