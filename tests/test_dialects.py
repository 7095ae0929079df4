"""The dialects, against their formulas in float64, printed numbers and recorded trajectories.

Against the frameworks themselves: tests/frameworks/test_parity.py.
"""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.tree_utils import tree_get, tree_set
from support import reference
from support.bad_values import (
    NOT_A_NUMBER,
    NOT_A_SIZE,
    NOT_FINITE,
    NOT_IN_UNIT_INTERVAL,
    name_of,
)
from support.trajectories import assert_same_path, path, problem, scheduled, traced_path

import rmsprop_jax
from rmsprop_jax import dialects

# The arguments of each dialect's source, with their defaults: those of its reference after
# gradients and parameters.
SIGNATURES = {
    name: {k: p.default for k, p in list(inspect.signature(function).parameters.items())[2:]}
    for name, function in reference.DIALECTS.items()
}
WITH_MOMENTUM = [name for name, options in SIGNATURES.items() if "momentum" in options]
# Further arguments of the dialect, by name only.
BY_NAME = {"tf_keras": {"decay": 0.0}, "timm": {"mask": None}}
FLAGS = ("centered", "maximize", "decoupled_decay", "lr_in_momentum", "decouple_wd")
FRACTIONS = [
    (name, k)
    for name, options in SIGNATURES.items()
    for k in options
    if k in ("alpha", "rho", "decay", "momentum", "mom", "sqr_mom")
    and (name, k) != ("tf_keras", "decay")  # the decay of its learning rate
]
NUMBERS = [(name, k) for name, options in SIGNATURES.items() for k in options if k not in FLAGS]
# Two values for every argument.
VALUES = {
    "lr": [1e-3, 1e-2],
    "learning_rate": [1e-3, 1e-2],
    "alpha": [0.9, 0.99],
    "rho": [0.9, 0.99],
    "decay": [0.99, 0.9],
    "momentum": [0.9, 0.0],
    "eps": [1e-2, 1e-8],
    "epsilon": [1e-2, 1e-8],
    "weight_decay": [1e-3, 0.0],
    "clipnorm": [0.5, 0.1],
    "clipvalue": [0.1, 1.0],
    "global_clipnorm": [0.5, 0.1],
    "centered": [True, False],
    "maximize": [True, False],
    "decoupled_decay": [True, False],
    "lr_in_momentum": [True, False],
    "mom": [0.9, 0.0],
    "sqr_mom": [0.9, 0.99],
    "wd": [1e-3, 0.0],
    "decouple_wd": [True, False],
}
# Dialects with an L2 penalty: see tests/frameworks/test_parity.py.
PENALIZED = ["pytorch", "timm", "stable_baselines3", "fastai"]


def rate_of(name):
    """The name of the learning rate, which is always the first argument."""
    return next(iter(SIGNATURES[name]))


def build(name, **options):
    return dialects.DIALECTS[name](**{rate_of(name): 1e-2} | options)


def problem_of(name, seed=0, **size):
    return problem(seed, **size, smallest=1e-3 if name in PENALIZED else 1e-6)


def test_every_dialect_has_a_reference():
    assert list(dialects.DIALECTS) == list(reference.DIALECTS)
    assert all(getattr(dialects, name) is make for name, make in dialects.DIALECTS.items())


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(dialects.DIALECTS[name]).parameters.values()
    by_name = BY_NAME.get(name, {})
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == {
        "accumulator_dtype": None,
        **by_name,
    }
    assert [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        (k, default) for k, default in SIGNATURES[name].items() if k not in by_name
    ]


def changed(name):
    """Each argument except the learning rate, with a value that is not its default."""
    _, *others = SIGNATURES[name].items()
    return {k: next(v for v in VALUES[k] if v != default) for k, default in others}


def cases_of(name):
    """Defaults, each argument alone, and all together, with only the first clipping limit."""
    each = changed(name)
    limits = [k for k in each if "clip" in k]
    together = {k: v for k, v in each.items() if k not in limits[1:]}
    return [{}, *({k: v} for k, v in each.items()), together]


CASES = [
    *((name, options) for name in SIGNATURES for options in cases_of(name)),
    ("pytorch", {"weight_decay": 1e-3, "maximize": True}),
    ("keras", {"weight_decay": 1e-2, "momentum": 0.9}),
    ("tensorflow_v1", {"epsilon": 1.0}),
]


def reference_path(name, options, gradients, params):
    gradients, params = (
        {k: x.astype(np.float64) for k, x in tree.items()} for tree in (gradients, params)
    )
    updates = reference.DIALECTS[name](gradients, params, **options)
    return {k: params[k] + np.cumsum(u, axis=0) for k, u in updates.items()}


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_path_is_the_references(name, options, schedule):
    options = {rate_of(name): 1e-2} | options
    if schedule:
        options = scheduled(options)
    gradients, params = problem_of(name)
    ours = path(build(name, **options), gradients, params)
    assert_same_path(ours, reference_path(name, options, gradients, params), params)


@pytest.mark.parametrize("limit", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_limit_of_zero_does_not_clip(limit):
    gradients, params = problem(seed=0, steps=20)
    ours = path(dialects.keras(**{limit: 0}), gradients, params)
    jax.tree.map(np.testing.assert_array_equal, ours, path(dialects.keras(), gradients, params))


@pytest.mark.parametrize("limit", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_derivative_of_a_clipped_step_is_finite_at_zero(limit):
    optimizer = dialects.keras(**{limit: 1.0})
    state = optimizer.init(jnp.zeros(3))

    def moved(g):
        return jnp.sum(optimizer.update(g, state)[0])

    assert jnp.isfinite(jax.grad(moved)(jnp.zeros(3))).all()


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("size", [1e-18, 1e18, 1e25, 1e38])
def test_clipped_norm_is_never_above_its_limit(limit, size):
    """Also where squares overflow in float32; there, as in Keras, the result is zero."""
    optimizer = dialects.keras(**{limit: 5.0})
    [(_, state)] = taken_steps(optimizer, jnp.ones(3), [jnp.array([size, -size, 0.0])])
    expected = 0.1 * min(size, 5 / np.sqrt(2)) ** 2 * np.array([1, 1, 0])
    expected *= size < 1e19
    np.testing.assert_allclose(tree_get(state, "nu"), expected, rtol=1e-5, atol=1e-40)


@pytest.mark.parametrize("limit", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_limit_of_zero_stops_tf_keras(limit):
    gradients, params = problem(seed=0, steps=3)
    taken = path(dialects.tf_keras(**{limit: 0}), gradients, params)
    for leaf, w in params.items():
        np.testing.assert_array_equal(taken[leaf], np.tile(w, (3, 1)))


def test_tf_keras_clips_values_before_norms():
    g = np.float32([[3.0, 0.1]])
    options = {"clipnorm": 0.5, "clipvalue": 1.0}
    optimizer = dialects.tf_keras(**options)
    [(_, state)] = taken_steps(optimizer, jnp.ones(2), g)
    clipped = np.array([1.0, 0.1]) * 0.5 / np.hypot(1.0, 0.1)
    np.testing.assert_allclose(tree_get(state, "nu"), 0.1 * clipped**2, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_tf_keras_with_traced_momentum_and_epsilon(epsilon, momentum):
    """`optax.inject_hyperparams` turns all numbers into arrays."""
    gradients, params = problem(seed=0, steps=20)
    options = {"momentum": momentum, "epsilon": epsilon, "centered": True}
    injected = optax.inject_hyperparams(dialects.tf_keras)(**options)
    expected = path(dialects.tf_keras(**options), gradients, params)
    assert_same_path(path(injected, gradients, params), expected, params)


@pytest.mark.parametrize("decoupled_decay", [False, True])
@pytest.mark.parametrize("mask", [{"w": True, "b": False}, lambda w: {k: k == "w" for k in w}])
def test_mask_of_timm(mask, decoupled_decay):
    gradients, params = problem_of("timm", steps=20)
    options = {"decoupled_decay": decoupled_decay, "momentum": 0.9}
    masked = path(dialects.timm(weight_decay=0.1, mask=mask, **options), gradients, params)
    for leaf, decay in (("w", 0.1), ("b", 0.0)):
        expected = path(dialects.timm(weight_decay=decay, **options), gradients, params)[leaf]
        np.testing.assert_array_equal(masked[leaf], expected)


@pytest.mark.parametrize("mask", [3, {"w": "no"}])
def test_mask_that_is_not_of_booleans_is_rejected(mask):
    with pytest.raises(TypeError, match="mask must be True or False"):
        dialects.timm(mask=mask)


def test_corrected_weight_decay_of_timm():
    """Appended to the chain: decoupled, and scaled by the learning rate over its maximum."""
    schedule = optax.cosine_decay_schedule(0.1, 20)
    gradients, params = problem_of("timm", steps=20)
    decay = optax.add_decayed_weights(lambda step: -0.3 * schedule(step) ** 2 / 0.1)
    ours = path(optax.chain(dialects.timm(schedule), decay), gradients, params)
    updates = reference.timm(gradients, params, lambda t: float(schedule(t)))
    for leaf, w in params.items():
        w = w.astype(np.float64)
        for t, update in enumerate(updates[leaf]):
            w = w + update - 0.3 * float(schedule(t)) ** 2 / 0.1 * w
            np.testing.assert_allclose(ours[leaf][t], w, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_l2_penalty_goes_through_the_averages(decay):
    """Paddle, MindSpore, MXNet and SINGA: TensorFlow's rule with an L2 penalty."""
    gradients, params = problem(seed=0, smallest=1e-3)
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-2), rmsprop_jax.rmsprop(1e-2, decay, 1e-6, momentum=0.9)
    )
    expected = {}
    for leaf, w in params.items():
        w, b, v, expected[leaf] = w.astype(np.float64), 0.0, 0.0, []
        for g in gradients[leaf]:
            g = g + 1e-2 * w
            v = decay * v + (1 - decay) * g**2
            b = 0.9 * b + 1e-2 * g / np.sqrt(v + 1e-6)
            w = w - b
            expected[leaf].append(w)
    expected = {k: np.stack(v) for k, v in expected.items()}
    assert_same_path(path(optimizer, gradients, params), expected, params)


def test_average_that_starts_with_the_first_square():
    """SVGD, and loops written by hand: v is g**2 at the first step."""
    gradients, params = problem(seed=0, steps=30)
    optimizer = rmsprop_jax.rmsprop(1e-2, eps=1e-6, eps_in_sqrt=False)
    state = tree_set(optimizer.init(params), nu={k: jnp.square(g[0]) for k, g in gradients.items()})
    for t in range(30):
        g = {k: x[t] for k, x in gradients.items()}
        updates, state = optimizer.update(g, state)
        for leaf, u in updates.items():
            x = gradients[leaf][: t + 1].astype(np.float64)
            v = x[0] ** 2
            for later in x[1:]:
                v = 0.9 * v + 0.1 * later**2
            np.testing.assert_allclose(u, -1e-2 * x[-1] / (np.sqrt(v) + 1e-6), rtol=1e-5)


def test_hinton_does_not_move_where_gradients_are_zero():
    gradients, params = problem(seed=0, steps=20)
    gradients["w"][:] = 0
    taken = path(dialects.hinton(1e-2), gradients, params)
    np.testing.assert_array_equal(taken["w"], np.tile(params["w"], (20, 1)))


def updates_of(optimizer, gradients, params):
    def step(state, g):
        updates, state = optimizer.update(g, state, params)
        return state, updates

    return jax.lax.scan(step, optimizer.init(params), gradients)[1]


def test_learning_rate_is_outside_torchs_buffer_and_inside_the_others():
    """After a change from rate to new, Keras's buffer still holds steps at the old one."""
    steps, change, mu, rate, new = 80, 40, 0.9, 1e-2, 2e-3
    gradients, params = problem_of("pytorch", steps=steps)

    def schedule(step):
        return jnp.where(step < change, rate, new)

    torch = dialects.pytorch(schedule, alpha=0.9, eps=0.0, momentum=mu)
    torch = updates_of(torch, gradients, params)
    after = np.arange(1, steps - change + 1)[:, None]
    for inside in (
        dialects.keras(schedule, rho=0.9, epsilon=0.0, momentum=mu),
        rmsprop_jax.rmsprop(schedule, 0.9, 0.0, momentum=mu),
    ):
        inside = updates_of(inside, gradients, params)
        for leaf, outside in torch.items():
            difference = inside[leaf] - outside
            np.testing.assert_allclose(difference[:change], 0, atol=1e-5 * rate)
            buffer = outside[change - 1] / rate
            expected = (rate - new) * mu**after * buffer
            np.testing.assert_allclose(difference[change:], expected, atol=1e-5 * rate)


@pytest.mark.parametrize(
    "options",
    [{}, {"centered": True}, {"weight_decay": 1e-3, "momentum": 0.9, "maximize": True}],
    ids=str,
)
def test_pytorch_treats_a_complex_parameter_as_two_real_ones(options):
    (real, real_start), (imag, imag_start) = (problem_of("pytorch", seed) for seed in (0, 1))
    optimizer = dialects.pytorch(**options)
    taken = path(
        optimizer,
        {k: jax.lax.complex(real[k], imag[k]) for k in real},
        {k: jax.lax.complex(real_start[k], imag_start[k]) for k in real},
    )
    for half, gradients, start in ((np.real, real, real_start), (np.imag, imag, imag_start)):
        ours = {k: half(v) for k, v in taken.items()}
        assert_same_path(ours, path(optimizer, gradients, start), start, rtol=1e-6)


@pytest.mark.parametrize(("name", "argument"), NUMBERS)
def test_vmap_over_a_hyperparameter(name, argument):
    gradients, params = problem_of(name, steps=20)

    def taken(value):
        return traced_path(build(name, **{argument: value}), gradients, params)

    values = VALUES[argument]
    together = jax.tree.map(np.asarray, jax.vmap(taken)(jnp.array(values)))
    for i, value in enumerate(values):
        alone = path(build(name, **{argument: value}), gradients, params)
        assert_same_path({k: v[i] for k, v in together.items()}, alone, params)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("name", SIGNATURES)
def test_inject_hyperparams(name, schedule):
    gradients, params = problem_of(name, steps=20)
    options = {rate_of(name): 1e-2}
    if schedule:
        options = scheduled(options)
    injected = optax.inject_hyperparams(dialects.DIALECTS[name])(**options)
    hyperparams = injected.init(params).hyperparams
    numbers = {k for k, v in SIGNATURES[name].items() if k not in FLAGS and v is not None}
    assert set(hyperparams) == numbers
    expected = path(build(name, **options), gradients, params)
    assert_same_path(path(injected, gradients, params), expected, params)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_momentum_of_zero_keeps_no_buffer(name):
    def buffer(momentum):
        state = build(name, momentum=momentum).init(jnp.ones(3))
        return tree_get(state, "trace")

    assert buffer(0.0) is None
    assert buffer(0.9).shape == (3,)
    assert jax.eval_shape(buffer, 0.0).shape == (3,)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"centered": True}) for name in SIGNATURES if "centered" in SIGNATURES[name]]
    + [(name, {}) for name in SIGNATURES],
    ids=str,
)
def test_bfloat16_parameters_have_float32_averages(name, options):
    options = options | ({"momentum": 0.9} if name in WITH_MOMENTUM else {})
    params = jnp.ones(3, jnp.bfloat16)
    optimizer = build(name, **options)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    [average] = [x for x in (tree_get(state, k) for k in ("nu", "var")) if x is not None]
    assert updates.dtype == jnp.bfloat16
    assert average.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def taken_steps(optimizer, params, gradients):
    """The parameters and the state after each of the ``gradients``."""
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize(
    "optimizer",
    [rmsprop_jax.rmsprop(0.01, 0.9, 1e-8), dialects.keras(0.01, epsilon=1e-8)],
    ids=["rmsprop", "keras"],
)
def test_printed_by_codecademy(optimizer):
    # codecademy.com/resources/docs/ai/neural-networks/rmsprop
    theta, g = jnp.array([0.2, 0.4, 0.6]), jnp.array([-0.5, 0.3, 0.24])
    [(theta, _)] = taken_steps(optimizer, theta, [g])
    np.testing.assert_allclose(theta, [0.23162277, 0.36837724, 0.56837725], rtol=1e-6)


# keras/src/optimizers/rmsprop_test.py, the next four.
def test_printed_by_keras_single_step():
    params, g = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 6.0, 7.0, 2.0])
    [(params, _)] = taken_steps(dialects.keras(learning_rate=0.5), params, [g])
    np.testing.assert_allclose(params, [-0.5811, 0.4189, 1.4189, 2.4189], rtol=1e-4)


def test_printed_by_keras_weight_decay():
    optimizer = dialects.keras(learning_rate=1.0, weight_decay=0.004)
    *_, (params, _) = taken_steps(optimizer, jnp.array(2.0), [jnp.array(0.0)] * 3)
    np.testing.assert_allclose(params, 1.9760959, rtol=1e-6)


def test_printed_by_keras_centered():
    gradients = [jnp.full(10, 0.01), *[jnp.arange(0.1, 1.1, 0.1)] * 4]
    steps = taken_steps(dialects.keras(centered=True), jnp.ones(10), gradients)
    golden = [0.9967, 0.9933, 0.9908, 0.9885, 0.9864]
    for (params, _), expected in zip(steps, golden, strict=True):
        np.testing.assert_allclose(params, np.full(10, expected), atol=5e-4)


@pytest.mark.parametrize(("limit", "square"), [("clipnorm", 0.5), ("clipvalue", 1.0)])
def test_printed_by_keras_clipping(limit, square):
    """A gradient of [100, 100] with a limit of 1; the average shows the clipped gradient."""
    optimizer = dialects.keras(**{limit: 1})
    [(_, state)] = taken_steps(optimizer, jnp.ones(2), [jnp.full(2, 100.0)])
    np.testing.assert_allclose(tree_get(state, "nu"), [0.1 * square] * 2, rtol=1e-6)


# tensorflow/python/training/rmsprop_test.py, the next two.
def tensorflow_test_steps(**options):
    params = {"var0": jnp.array([1.0, 2.0]), "var1": jnp.array([3.0, 4.0])}
    g = {"var0": jnp.array([0.1, 0.1]), "var1": jnp.array([0.01, 0.01])}
    optimizer = dialects.tensorflow_v1(learning_rate=2.0, decay=0.9, **options)
    return taken_steps(optimizer, params, [g, g])


def test_printed_by_tensorflow_without_momentum():
    var0, var1 = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    after = [(0.901, 0.90001), (0.901 * 0.9 + 0.001, 0.90001 * 0.9 + 1e-5)]
    steps = tensorflow_test_steps(momentum=0.0, epsilon=1.0)
    for (params, state), (rms0, rms1) in zip(steps, after, strict=True):
        var0 = var0 - 0.1 * 2.0 / np.sqrt(rms0 + 1.0)
        var1 = var1 - 0.01 * 2.0 / np.sqrt(rms1 + 1.0)
        nu = tree_get(state, "nu")
        np.testing.assert_allclose([*nu["var0"], *nu["var1"]], [rms0] * 2 + [rms1] * 2, rtol=1e-6)
        np.testing.assert_allclose([params["var0"], params["var1"]], [var0, var1], rtol=1e-6)


def test_printed_by_tensorflow_with_momentum():
    var0, var1, mom0, mom1 = np.array([1.0, 2.0]), np.array([3.0, 4.0]), 0.0, 0.0
    after = [(0.901, 0.90001), (0.901 * 0.9 + 0.001, 0.90001 * 0.9 + 1e-5)]
    steps = tensorflow_test_steps(momentum=0.5, epsilon=1e-5)
    for (params, state), (rms0, rms1) in zip(steps, after, strict=True):
        mom0 = 0.5 * mom0 + 0.1 * 2.0 / np.sqrt(rms0 + 1e-5)
        mom1 = 0.5 * mom1 + 0.01 * 2.0 / np.sqrt(rms1 + 1e-5)
        var0, var1 = var0 - mom0, var1 - mom1
        buffer = tree_get(state, "trace")
        buffered = abs(np.array([*buffer["var0"], *buffer["var1"]]))
        np.testing.assert_allclose(buffered, [mom0] * 2 + [mom1] * 2, rtol=1e-6)
        np.testing.assert_allclose([params["var0"], params["var1"]], [var0, var1], rtol=1e-6)


def test_printed_by_dive_into_deep_learning():
    # d2l.ai, section 12.8.3: f = 0.1 x1^2 + 2 x2^2, printed with six decimals.
    optimizer = rmsprop_jax.rmsprop(learning_rate=0.4, decay=0.9, eps=1e-6)
    x = jnp.array([-5.0, -2.0])
    state = optimizer.init(x)
    for _ in range(20):
        updates, state = optimizer.update(jnp.array([0.2, 4.0]) * x, state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, [-0.010599, 0.0], atol=6e-7)


# The dialect, the argument, a bad value, the error, and what its message must say is allowed.
BAD_ARGUMENTS = [
    case
    for name, k in NUMBERS
    for case in [
        *((name, k, bad, TypeError, "finite number") for bad in NOT_A_NUMBER if bad is not None),
        (name, k, jnp.ones(3), ValueError, "one number"),
        *(
            ((name, k, bad, ValueError, "< 1") for bad in NOT_IN_UNIT_INTERVAL)
            if (name, k) in FRACTIONS
            else ((name, k, bad, ValueError, "finite") for bad in NOT_FINITE)
            if k == rate_of(name)
            else ((name, k, bad, ValueError, ">= 0") for bad in NOT_A_SIZE)
        ),
    ]
]
BAD_ARGUMENTS += [
    (name, k, None, TypeError, "finite number")
    for name, k in NUMBERS
    if SIGNATURES[name][k] is not None
]
BAD_ARGUMENTS += [
    (name, k, optax.constant_schedule(0.9), TypeError, "inject_hyperparams")
    for name, k in NUMBERS
    if k != rate_of(name)
]
BAD_ARGUMENTS += [
    (name, k, bad, TypeError, "True or False")
    for name, options in SIGNATURES.items()
    for k in options
    if k in FLAGS
    for bad in (1, None, "yes")
]


@pytest.mark.parametrize(
    ("name", "argument", "bad", "error", "allowed"), BAD_ARGUMENTS, ids=name_of
)
def test_bad_arguments_are_rejected(name, argument, bad, error, allowed):
    with pytest.raises(error) as raised:
        build(name, **{argument: bad})
    message = str(raised.value)
    assert message.startswith(f"{argument} ")
    assert allowed in message
    assert str(np.shape(bad)) in message or repr(bad) in message


@pytest.mark.parametrize("name", SIGNATURES)
def test_schedule_that_returns_an_array_is_rejected(name):
    rate = rate_of(name)
    optimizer = build(name, **{rate: lambda _: jnp.ones(3)})
    with pytest.raises(ValueError, match=rf"^{rate}\(.*one number.*\(3,\)"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize(
    "limits",
    [
        {"clipnorm": 1.0, "clipvalue": 2.0},
        {"clipvalue": 1.0, "global_clipnorm": 2.0},
        {"clipnorm": 1.0, "global_clipnorm": 2.0},
        {"clipnorm": 0, "clipvalue": 0, "global_clipnorm": 0},
    ],
    ids=str,
)
def test_two_limits_are_rejected(limits):
    with pytest.raises(ValueError, match="clipnorm, clipvalue, global_clipnorm") as raised:
        dialects.keras(**limits)
    assert str(limits) in str(raised.value)


def test_two_norms_are_rejected():
    with pytest.raises(ValueError, match="only one of clipnorm, global_clipnorm may be given"):
        dialects.tf_keras(clipnorm=1.0, global_clipnorm=2.0)


@pytest.mark.parametrize(
    ("name", "argument"), [(n, k) for n, k in NUMBERS if k in ("weight_decay", "wd")]
)
def test_weight_decay_without_params_is_rejected(name, argument):
    optimizer = build(name, **{argument: 0.1})
    with pytest.raises(ValueError, match=rf"^{argument}=0\.1 needs params"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))


# Trajectories recorded from the frameworks themselves: see tests/golden/record.py.

RECORDS = {
    file.stem: json.loads(file.read_text())
    for file in sorted((Path(__file__).parent / "golden").glob("*.json"))
}


def arrays(leaves, dtype):
    return {k: np.asarray(v, dtype) for k, v in leaves.items()}


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, record in RECORDS.items() for case in record["cases"]],
    ids=lambda x: x if isinstance(x, str) else f"{x['options']}, schedule={x['schedule']}",
)
def test_path_is_the_frameworks(name, case):
    record, options = RECORDS[name], case["options"]
    gradients, params = (arrays(record[k], np.float32) for k in ("gradients", "params"))
    optimizer = dialects.DIALECTS[name](**scheduled(options) if case["schedule"] else options)
    ours = path(optimizer, gradients, params)
    every = record["every"]
    ours = {k: v[every - 1 :: every] for k, v in ours.items()}
    assert_same_path(ours, arrays(case["path"], np.float64), params)


@pytest.mark.parametrize("name", RECORDS)
def test_every_option_has_a_case(name):
    cases, defaults = RECORDS[name]["cases"], SIGNATURES[name]
    tried = {k for case in cases for k, v in case["options"].items() if v != defaults[k]}
    assert tried == set(defaults)
    assert {case["schedule"] for case in cases} == {False, True}
