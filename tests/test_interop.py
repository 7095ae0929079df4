"""Checkpoints as NumPy arrays, without the frameworks; with them: tests/frameworks."""

import subprocess
import sys
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.trajectories import assert_same_path, path, problem

import rmsprop_jax
from rmsprop_jax import dialects, interop
from rmsprop_jax.interop import Leaf

RNG = np.random.default_rng(0)
PARAMS = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
TORCH_MAPPING = {
    "dense.weight": Leaf("dense/kernel", transpose=(1, 0)),
    "dense.bias": Leaf("dense/bias"),
}
SHAPES = {"dense.weight": (2, 3), "dense.bias": (2,)}
FREE = {"learning_rate": 0.01, "decay": 0.9}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def slots(shape, centered=True, momentum=0.9, step=7):
    mean, variance = normal(*shape), abs(normal(*shape))
    state = {"step": np.float32(step), "square_avg": mean**2 + variance}
    if centered:
        state["grad_avg"] = mean
    if momentum:
        state["momentum_buffer"] = normal(*shape)
    return state


def group(indices, **options):
    hyperparameters = {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.0}
    hyperparameters |= {"momentum": 0.9, "centered": True, "maximize": False, "foreach": None}
    return hyperparameters | {"params": indices} | options


def torch_checkpoint(**options):
    centered, momentum = options.get("centered", True), options.get("momentum", 0.9)
    return {
        "epoch": 3,
        "model_state_dict": {name: normal(*shape) for name, shape in SHAPES.items()},
        "optimizer_state_dict": {
            "state": {
                i: slots(shape, centered, momentum) for i, shape in enumerate(SHAPES.values())
            },
            "param_groups": [group([0, 1], **options)],
        },
    }


def two_groups():
    """The bias comes first, with different hyperparameters."""
    checkpoint = torch_checkpoint()
    optimizer = checkpoint["optimizer_state_dict"]
    optimizer["param_groups"] = [
        group([0], momentum=0.0, centered=False, alpha=0.5),
        group([1], weight_decay=0.1),
    ]
    optimizer["state"] = {0: slots((2,), centered=False, momentum=0.0), 1: slots((2, 3))}
    return checkpoint


def tensorflow_checkpoint(centered=False):
    names = ["RMSProp", "RMSProp_1", *(["RMSProp_2"] if centered else [])]
    variables = {"global_step": np.int64(7)}
    for path_, shape in {"dense/kernel": (3, 2), "dense/bias": (2,)}.items():
        variables[path_] = normal(*shape)
        variables |= {f"{path_}/{name}": abs(normal(*shape)) for name in names}
    return variables


def field(state, name):
    return optax.tree_utils.tree_get(state, name)


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_same_shape_and_dtype(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)


def assert_trees_close(trees, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), *trees)


def test_torch_arrays_reach_their_leaves():
    checkpoint = torch_checkpoint()
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING)
    model, state = checkpoint["model_state_dict"], checkpoint["optimizer_state_dict"]["state"]
    assert jax.tree.structure(restored.params) == jax.tree.structure(PARAMS)
    assert_equal_trees(restored.params["dense"]["kernel"], model["dense.weight"].T)
    assert_equal_trees(restored.params["dense"]["bias"], model["dense.bias"])
    assert_equal_trees(
        field(restored.state, "trace")["dense"]["kernel"], state[0]["momentum_buffer"].T
    )
    assert_equal_trees(field(restored.state, "mu")["dense"]["bias"], state[1]["grad_avg"])
    variance = state[0]["square_avg"].astype(float) - state[0]["grad_avg"].astype(float) ** 2
    np.testing.assert_allclose(
        field(restored.state, "var")["dense"]["kernel"], variance.T, rtol=1e-6
    )
    assert restored.step == 7
    assert restored.hyperparameters == (
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.0}
        | {"momentum": 0.9, "centered": True, "maximize": False},
    )


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_torch_there_and_back(centered, momentum):
    checkpoint = torch_checkpoint(centered=centered, momentum=momentum)
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING)
    target = torch_checkpoint(centered=centered, momentum=momentum)
    before = jax.tree.map(np.array, target["model_state_dict"])
    saved = interop.pytorch.save(target, restored.params, restored.state, TORCH_MAPPING, step=9)
    assert saved["epoch"] == 3
    assert_equal_trees(saved["model_state_dict"], checkpoint["model_state_dict"])
    assert_equal_trees(target["model_state_dict"], before)
    for i, slots_ in checkpoint["optimizer_state_dict"]["state"].items():
        back = saved["optimizer_state_dict"]["state"][i]
        assert back.pop("step") == 9
        del slots_["step"]
        assert back.keys() == slots_.keys()
        for name, x in slots_.items():
            assert back[name].dtype == np.float32
            np.testing.assert_allclose(back[name], x, rtol=1e-6)


def test_torch_without_a_mapping_keeps_names_and_axes():
    like = {"dense": {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}}
    checkpoint = torch_checkpoint()
    restored = interop.pytorch.load(checkpoint, like)
    assert_equal_trees(
        restored.params["dense"]["weight"], checkpoint["model_state_dict"]["dense.weight"]
    )


def test_torch_saves_into_an_optimizer_before_its_first_step():
    restored = interop.pytorch.load(torch_checkpoint(), PARAMS, TORCH_MAPPING)
    fresh = torch_checkpoint()
    fresh["optimizer_state_dict"]["state"] = {}
    saved = interop.pytorch.save(fresh, restored.params, restored.state, TORCH_MAPPING, step=7)
    back = interop.pytorch.load(saved, PARAMS, TORCH_MAPPING)
    assert back.step == 7
    assert_equal_trees(back.params, restored.params)
    assert_trees_close((back.state, restored.state))


def test_torch_groups_keep_their_hyperparameters():
    names = ["dense.bias", "dense.weight"]
    restored = interop.pytorch.load(two_groups(), PARAMS, TORCH_MAPPING, names=names)
    assert [h["alpha"] for h in restored.hyperparameters] == [0.5, 0.9]
    gradients = jax.tree.map(lambda x: jnp.ones(x.shape), PARAMS)
    updates, _ = restored.optimizer.update(gradients, restored.state, restored.params)
    for leaf, options in zip(("bias", "kernel"), restored.hyperparameters, strict=True):
        alone = dialects.pytorch(**options)
        state = jax.tree.map(
            lambda x: x["dense"][leaf] if isinstance(x, dict) else x,  # noqa: B023
            restored.state.inner_states["0" if leaf == "bias" else "1"].inner_state,
            is_leaf=lambda x: isinstance(x, dict),
        )
        expected, _ = alone.update(gradients["dense"][leaf], state, restored.params["dense"][leaf])
        np.testing.assert_array_equal(updates["dense"][leaf], expected)


def test_torch_groups_there_and_back():
    names, checkpoint = ["dense.bias", "dense.weight"], two_groups()
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING, names=names)
    saved = interop.pytorch.save(
        two_groups(), restored.params, restored.state, TORCH_MAPPING, names=names, step=7
    )
    for i, slots_ in checkpoint["optimizer_state_dict"]["state"].items():
        back = saved["optimizer_state_dict"]["state"][i]
        assert back.keys() == slots_.keys()
        for name, x in slots_.items():
            np.testing.assert_allclose(back[name], x, rtol=1e-6)


def test_torch_groups_may_each_have_their_own_rate():
    names, rates = ["dense.bias", "dense.weight"], [lambda _: 0.5, 0.25]
    restored = interop.pytorch.load(
        two_groups(), PARAMS, TORCH_MAPPING, names=names, lr=rates, eps=1.0
    )
    assert [h["lr"] for h in restored.hyperparameters] == rates
    assert [h["eps"] for h in restored.hyperparameters] == [1.0, 1.0]


def test_torch_names_in_the_checkpoint_are_used():
    checkpoint = two_groups()
    for one, name in zip(
        checkpoint["optimizer_state_dict"]["param_groups"],
        ["dense.bias", "dense.weight"],
        strict=True,
    ):
        one["param_names"] = [name]
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING)
    assert_equal_trees(
        restored.params["dense"]["bias"], checkpoint["model_state_dict"]["dense.bias"]
    )


def test_torch_complex_parameters_are_two_real_ones():
    def complex_normal():
        return normal(4) + 1j * normal(4)

    mean = complex_normal()
    square = abs(normal(4)) + mean.real**2 + 1j * (abs(normal(4)) + mean.imag**2)
    slots_ = {
        "step": 1,
        "square_avg": square,
        "grad_avg": mean,
        "momentum_buffer": complex_normal(),
    }
    checkpoint = {
        "model_state_dict": {"w": complex_normal()},
        "optimizer_state_dict": {"state": {0: slots_}, "param_groups": [group([0])]},
    }
    restored = interop.pytorch.load(checkpoint, {"w": jnp.zeros(4, jnp.complex64)})
    var = field(restored.state, "var")["w"]
    np.testing.assert_allclose(var.real, square.real - mean.real**2, rtol=1e-5)
    np.testing.assert_allclose(var.imaginary, square.imag - mean.imag**2, rtol=1e-5)
    saved = interop.pytorch.save(checkpoint, restored.params, restored.state, step=1)
    for name, x in saved["optimizer_state_dict"]["state"][0].items():
        np.testing.assert_allclose(x, slots_[name], rtol=1e-6)


def test_variance_is_computed_in_float64_and_clipped_at_zero():
    mean = np.array([1000.1, 1000.1], np.float32)
    square = mean**2 + np.array([1.0, -1.0], np.float32)
    checkpoint = {
        "model_state_dict": {"w": normal(2)},
        "optimizer_state_dict": {
            "state": {0: slots((2,)) | {"square_avg": square, "grad_avg": mean}},
            "param_groups": [group([0])],
        },
    }
    var = field(interop.pytorch.load(checkpoint, {"w": jnp.zeros(2)}).state, "var")["w"]
    expected = float(square[0]) - float(mean[0]) ** 2
    np.testing.assert_allclose(var, [expected, 0], rtol=1e-6)


def test_torch_old_checkpoints_lack_hyperparameters():
    checkpoint = torch_checkpoint(centered=False, momentum=0.0)
    for name in ("momentum", "centered", "maximize"):
        del checkpoint["optimizer_state_dict"]["param_groups"][0][name]
    [hyperparameters] = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING).hyperparameters
    assert {k: hyperparameters[k] for k in ("momentum", "centered", "maximize")} == {
        "momentum": 0.0,
        "centered": False,
        "maximize": False,
    }


@pytest.mark.parametrize("steps", [(7, 5), (5, 7)])
def test_torch_step_is_the_largest_of_any_parameter(steps):
    checkpoint = torch_checkpoint()
    for i, step in enumerate(steps):
        checkpoint["optimizer_state_dict"]["state"][i]["step"] = step
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING, lr=lambda _: 0.1)
    assert restored.step == restored.state.inner_state[-1].count == 7


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_hyperparameters_may_be_scalar_arrays(momentum):
    array = jnp.array(momentum)
    checkpoint = torch_checkpoint(momentum=momentum)
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING, momentum=array)
    assert restored.hyperparameters[0]["momentum"] == pytest.approx(momentum)
    interop.tensorflow_v1.load(tensorflow_checkpoint(), PARAMS, learning_rate=0.1, momentum=array)


def test_saved_arrays_have_the_dtypes_of_the_target():
    def half_precision(tree):
        return {k: x.astype(np.float16) if x.dtype == np.float32 else x for k, x in tree.items()}

    restored = interop.pytorch.load(torch_checkpoint(), PARAMS, TORCH_MAPPING)
    target = torch_checkpoint()
    target["model_state_dict"] = half_precision(target["model_state_dict"])
    saved = interop.pytorch.save(target, restored.params, restored.state, TORCH_MAPPING, step=1)
    assert saved["model_state_dict"]["dense.weight"].dtype == np.float16
    assert saved["optimizer_state_dict"]["state"][0]["grad_avg"].dtype == np.float16

    restored = interop.tensorflow_v1.load(tensorflow_checkpoint(), PARAMS, learning_rate=0.1)
    target = half_precision(tensorflow_checkpoint()) | {"note": b"text", "number": 0.5}
    saved = interop.tensorflow_v1.save(target, restored.params, restored.state, step=8)
    assert saved.pop("note") == b"text"
    assert saved.pop("number") == 0.5
    assert {x.dtype for x in saved.values()} == {np.dtype(np.float16), np.dtype(np.int64)}


def test_optax_complex_parameters():
    """Optax averages their |g|^2, and keeps it with an imaginary part of zero."""
    options = FREE | {"centered": True, "momentum": 0.9}
    params = {"w": jnp.asarray(normal(4) + 1j * normal(4))}
    gradients = [{"w": jnp.asarray(normal(4) + 1j * normal(4))} for _ in range(8)]
    theirs = optax.rmsprop(**options)

    def steps(optimizer, state, gradients):
        for g in gradients:
            updates, state = optimizer.update(g, state, params)
        return updates, state

    _, state = steps(theirs, theirs.init(params), gradients[:4])
    restored = interop.optax.load(state, params, **options)
    expected, expected_state = steps(theirs, state, gradients[4:])
    ours, state = steps(restored.optimizer, restored.state, gradients[4:])
    assert_trees_close((ours, expected), rtol=1e-4)
    back = interop.optax.save(theirs.init(params), params, state, **options)
    assert_trees_close((back, expected_state), rtol=1e-4)


def test_leaves_may_be_attributes_named_real_and_imaginary():
    class Parts(NamedTuple):
        real: jax.Array
        imaginary: jax.Array

    params = Parts(jnp.zeros(3), jnp.zeros(1))
    optimizer = optax.rmsprop(**FREE)
    _, state = optimizer.update(Parts(jnp.ones(3), jnp.ones(1)), optimizer.init(params))
    restored = interop.optax.load(state, params, **FREE)
    assert_equal_trees(field(restored.state, "nu"), field(state, "nu"))


def test_a_schedule_continues_at_the_step_of_the_run():
    def schedule(step):
        return 0.1 * 0.5**step

    restored = interop.pytorch.load(torch_checkpoint(), PARAMS, TORCH_MAPPING, lr=schedule)
    assert restored.state.inner_state[-1].count == 7
    constant = interop.pytorch.load(torch_checkpoint(), PARAMS, TORCH_MAPPING, lr=0.1 * 0.5**7)
    gradients = jax.tree.map(lambda x: jnp.ones(x.shape), PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, constant.state)
    with_step = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x * 0, restored.state)
    ours, state = restored.optimizer.update(gradients, with_step, PARAMS)
    expected, _ = constant.optimizer.update(gradients, zeros, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, expected)
    saved = interop.pytorch.save(torch_checkpoint(), PARAMS, state, TORCH_MAPPING)
    assert saved["optimizer_state_dict"]["state"][0]["step"] == 8


def test_state_is_kept_in_float32_for_bfloat16_parameters():
    like = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    restored = interop.pytorch.load(torch_checkpoint(), like, TORCH_MAPPING)
    assert {x.dtype.name for x in jax.tree.leaves(restored.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(restored.state)} == {"float32"}
    saved = interop.pytorch.save(
        torch_checkpoint(), restored.params, restored.state, TORCH_MAPPING, step=1
    )
    assert saved["model_state_dict"]["dense.weight"].dtype == np.float32


LOW_PRECISION = [("bfloat16", 0.01), ("float8_e5m2", 0.15)]


@pytest.mark.parametrize(("dtype", "rtol"), LOW_PRECISION)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("schedule", [False, True])
def test_torch_continues_in_low_precision_and_back(schedule, centered, dtype, rtol):
    checkpoint = torch_checkpoint(centered=centered)
    rate = {"lr": lambda _: 0.01} if schedule else {}
    restored = interop.pytorch.load(
        checkpoint, PARAMS, TORCH_MAPPING, accumulator_dtype=dtype, **rate
    )
    expected = jax.eval_shape(restored.optimizer.init, PARAMS)
    jax.tree.map(assert_same_shape_and_dtype, restored.state, expected)
    jax.jit(restored.optimizer.update)(PARAMS, restored.state, restored.params)
    # A low-precision state keeps the step.
    saved = interop.pytorch.save(checkpoint, restored.params, restored.state, TORCH_MAPPING)
    old, new = (c["optimizer_state_dict"]["state"] for c in (checkpoint, saved))
    assert_trees_close((new, old), rtol)


@pytest.mark.parametrize(("dtype", "rtol"), LOW_PRECISION)
def test_tensorflow_continues_in_low_precision_and_back(dtype, rtol):
    checkpoint = tensorflow_checkpoint()
    options = {"learning_rate": 0.01, "momentum": 0.9, "accumulator_dtype": dtype}
    restored = interop.tensorflow_v1.load(checkpoint, PARAMS, **options)
    saved = interop.tensorflow_v1.save(checkpoint, restored.params, restored.state)
    assert_trees_close((saved, checkpoint), rtol)


@pytest.mark.parametrize(("dtype", "rtol"), LOW_PRECISION)
def test_optax_continues_in_low_precision_and_back(dtype, rtol):
    options = {"learning_rate": 0.01, "momentum": 0.9, "bias_correction": True}
    theirs = optax.rmsprop(**options)
    params = jax.tree.map(jnp.ones_like, PARAMS)
    state = theirs.update(params, theirs.init(params), params)[1]
    restored = interop.optax.load(state, params, accumulator_dtype=dtype, **options)
    back = interop.optax.save(state, params, restored.state, accumulator_dtype=dtype, **options)
    assert field(restored.state, "count") == field(back, "count") == 1
    assert_trees_close((back, state), rtol)


def test_nothing_is_shared_with_the_checkpoint():
    checkpoint = torch_checkpoint()
    restored = interop.pytorch.load(checkpoint, PARAMS, TORCH_MAPPING)
    before = jax.tree.map(np.array, (restored.params, restored.state))
    for array in jax.tree.leaves(checkpoint):
        if isinstance(array, np.ndarray):
            array[...] = 5
    assert_equal_trees((restored.params, restored.state), before)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tensorflow_there_and_back(centered, momentum):
    checkpoint = tensorflow_checkpoint(centered)
    if centered:  # v >= m^2
        for name in ("dense/kernel", "dense/bias"):
            checkpoint[f"{name}/RMSProp"] += checkpoint[f"{name}/RMSProp_1"] ** 2
    options = {"learning_rate": 0.01, "centered": centered, "momentum": momentum}
    restored = interop.tensorflow_v1.load(checkpoint, PARAMS, **options)
    assert restored.step == 7
    if momentum:
        buffer = checkpoint[f"dense/bias/RMSProp_{2 if centered else 1}"]
        assert_equal_trees(field(restored.state, "trace")["dense"]["bias"], -buffer)
    target = tensorflow_checkpoint(centered)
    saved = interop.tensorflow_v1.save(target, restored.params, restored.state, step=8)
    assert saved.keys() == checkpoint.keys()
    assert saved.pop("global_step") == 8
    last = f"RMSProp_{2 if centered else 1}"
    for name, x in saved.items():
        expected = checkpoint[name] if momentum or not name.endswith(last) else 0 * checkpoint[name]
        np.testing.assert_allclose(x, expected, rtol=1e-6)


MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]
OPTAX_OPTIONS = [
    *(
        {"centered": centered, "bias_correction": corrected, "initial_scale": start} | momentum
        for centered, corrected, start, momentum in product(
            [False, True], [False, True], [0.0, 1.0], MOMENTA
        )
    ),
    {"eps_in_sqrt": False, "decay": 0.99},
]


@pytest.mark.parametrize("name", ["RMSProp", "own"])
def test_tensorflow_slots_in_the_optimizers_scope(name):
    unscoped = tensorflow_checkpoint()
    scoped = {
        f"train/{key}".replace("RMSProp", name) if "RMSProp" in key else key: x
        for key, x in unscoped.items()
    }
    restored = interop.tensorflow_v1.load(
        scoped, PARAMS, name=name, learning_rate=0.1, momentum=0.9
    )
    expected = interop.tensorflow_v1.load(unscoped, PARAMS, learning_rate=0.1, momentum=0.9)
    assert_equal_trees((restored.params, restored.state), (expected.params, expected.state))
    saved = interop.tensorflow_v1.save(scoped, restored.params, restored.state, name=name, step=7)
    assert_trees_close((saved, scoped))


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("options", OPTAX_OPTIONS, ids=str)
@pytest.mark.usefixtures("x64")
def test_optax_continues_here_and_back(options, schedule):
    """Ten steps in Optax, ten here, ten in Optax equal thirty in Optax. In float64, to be exact."""
    rate = (lambda count: 0.01 * 0.9**count) if schedule else 0.01
    options = options | {"learning_rate": rate, "eps": 1e-3}
    gradients, params = problem(seed=3, steps=30, smallest=1e-2)
    gradients = jax.tree.map(lambda g: jnp.asarray(g, float), gradients)
    start = params = jax.tree.map(lambda w: jnp.asarray(w, float), params)
    theirs = optax.rmsprop(**options)

    def ten_steps(optimizer, params, state, first):
        for t in range(first, first + 10):
            g = {k: leaf[t] for k, leaf in gradients.items()}
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = ten_steps(theirs, params, theirs.init(params), 0)
    restored = interop.optax.load(state, params, **options)
    params, state = ten_steps(restored.optimizer, restored.params, restored.state, 10)
    back = interop.optax.save(theirs.init(params), params, state, **options)
    params, _ = ten_steps(theirs, params, back, 20)
    taken = {k: np.asarray(w)[None] for k, w in params.items()}
    expected = {k: w[-1:] for k, w in path(theirs, gradients, start).items()}
    assert_same_path(taken, expected, start, rtol=1e-9)


@pytest.mark.parametrize("options", OPTAX_OPTIONS[::3], ids=str)
def test_optax_before_the_first_step(options):
    options = options | FREE
    theirs, ours = optax.rmsprop(**options), rmsprop_jax.rmsprop(**options)
    restored = interop.optax.load(theirs.init(PARAMS), PARAMS, **options)
    assert_equal_trees(restored.state, ours.init(PARAMS))
    back = interop.optax.save(theirs.init(PARAMS), PARAMS, ours.init(PARAMS), **options)
    assert_equal_trees(back, theirs.init(PARAMS))


def test_parameters_may_have_the_names_of_state_fields():
    like = {"nu": {"count": jnp.zeros(2), "real": jnp.zeros((2, 3))}}
    checkpoint = {
        "model_state_dict": {"nu.count": normal(2), "nu.real": normal(2, 3)},
        "optimizer_state_dict": {
            "state": {0: slots((2,)), 1: slots((2, 3))},
            "param_groups": [group([0, 1])],
        },
    }
    restored = interop.pytorch.load(checkpoint, like)
    state = checkpoint["optimizer_state_dict"]["state"]
    trace = optax.tree_utils.tree_get_all_with_path(restored.state, "trace")[0][1]
    assert_equal_trees(trace["nu"]["real"], state[1]["momentum_buffer"])
    assert_equal_trees(trace["nu"]["count"], state[0]["momentum_buffer"])


def test_reshape_converts_a_dense_layer_after_an_image():
    image, weight = normal(4, 3, 2), normal(5, 4 * 3 * 2)  # channels, height, width
    leaf = Leaf("kernel", transpose=(2, 3, 1, 0), reshape=(5, 4, 3, 2))
    kernel = leaf.to_jax(weight, (3 * 2 * 4, 5))
    channels_last = image.transpose(1, 2, 0).reshape(-1)
    np.testing.assert_allclose(channels_last @ kernel, weight @ image.reshape(-1), rtol=1e-5)
    assert_equal_trees(leaf.from_jax(kernel, weight.shape), weight)


def test_no_framework_is_imported():
    code = (
        "import sys, rmsprop_jax.interop; "
        "print([name for name in ('torch', 'keras', 'tensorflow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def broken(change, **options):
    """A torch checkpoint after ``change``, which receives it and the state of dense.weight."""
    checkpoint = torch_checkpoint(**options)
    change(checkpoint, checkpoint["optimizer_state_dict"]["state"][0])
    return checkpoint


def load_torch(checkpoint, params=PARAMS, mapping=TORCH_MAPPING, **options):
    return interop.pytorch.load(checkpoint, params, mapping, **options)


def put(name, x):
    return lambda _, state: state.update({name: x})


def nan_in(name):
    def change(_, state):
        state[name][0, 0] = np.nan

    return change


def in_dtype(dtype):
    return jax.tree.map(lambda x: x.astype(dtype), PARAMS)


def with_leaf(leaf):
    return lambda: load_torch(torch_checkpoint(), mapping=TORCH_MAPPING | {"dense.weight": leaf})


def save_torch(params=PARAMS, optimizer=None, step=1, **target):
    optimizer = optimizer or dialects.pytorch(momentum=0.9, centered=True)
    checkpoint = torch_checkpoint(**target)
    return interop.pytorch.save(
        checkpoint, params, optimizer.init(params), TORCH_MAPPING, step=step
    )


ADAM = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "params": [0, 1]}
BAD = {
    "centred state, uncentred optimizer": (
        lambda: load_torch(torch_checkpoint(), centered=False),
        ValueError,
        ["dense.weight has grad_avg", "square_avg", "centered=True"],
    ),
    "uncentred state, centred optimizer": (
        lambda: load_torch(torch_checkpoint(centered=False), centered=True),
        ValueError,
        ["dense.weight has no grad_avg"],
    ),
    "buffer without momentum": (
        lambda: load_torch(torch_checkpoint(), momentum=0.0),
        ValueError,
        ["dense.weight has momentum_buffer", "momentum > 0"],
    ),
    "missing slot": (
        lambda: load_torch(broken(lambda _, state: state.pop("momentum_buffer"))),
        ValueError,
        ["dense.weight has no momentum_buffer"],
    ),
    "missing state": (
        lambda: load_torch(broken(lambda c, _: c["optimizer_state_dict"]["state"].pop(1))),
        ValueError,
        ["['dense.bias'] have no optimizer state", 'missing="fresh"'],
    ),
    "wrong shape of a slot": (
        lambda: load_torch(broken(put("square_avg", np.ones((3, 2), np.float32)))),
        ValueError,
        ["dense.weight: square_avg", "(3, 2)", "(2, 3)"],
    ),
    "nan in an average": (
        lambda: load_torch(broken(nan_in("grad_avg"))),
        ValueError,
        ["dense.weight: grad_avg must be finite", "1 of its 6"],
    ),
    "nan in a parameter": (
        lambda: load_torch(
            broken(lambda c, _: c["model_state_dict"].update({"dense.bias": np.array([1, np.inf])}))
        ),
        ValueError,
        ["dense.bias must be finite"],
    ),
    "negative average": (
        lambda: load_torch(broken(put("square_avg", -np.ones((2, 3), np.float32)))),
        ValueError,
        ["dense.weight: square_avg", "negative"],
    ),
    "integers": (
        lambda: load_torch(broken(put("square_avg", np.ones((2, 3), int)))),
        TypeError,
        ["dense.weight: square_avg", "floating-point", "int64"],
    ),
    "another optimizer": (
        lambda: load_torch(
            broken(lambda c, _: c["optimizer_state_dict"].update(param_groups=[ADAM]))
        ),
        ValueError,
        ["not a torch.optim.RMSprop", "alpha", "betas"],
    ),
    "not a checkpoint": (
        lambda: load_torch({"model": {}}),
        ValueError,
        ["model_state_dict", "['model']"],
    ),
    "unknown hyperparameter": (
        lambda: load_torch(torch_checkpoint(), learning_rate=0.1),
        TypeError,
        ["pytorch()", "learning_rate"],
    ),
    "bad hyperparameter": (
        lambda: load_torch(torch_checkpoint(alpha=1.0)),
        ValueError,
        ["alpha", "1.0"],
    ),
    "several groups without names": (
        lambda: load_torch(two_groups()),
        ValueError,
        ["param_groups", "names="],
    ),
    "too few names": (
        lambda: load_torch(two_groups(), names=["dense.bias"]),
        ValueError,
        ["2 parameters", "['dense.bias']"],
    ),
    "unknown name": (
        lambda: load_torch(two_groups(), names=["dense.bias", "dense.wait"]),
        ValueError,
        ["dense.wait", "dense.weight"],
    ),
    "buffers among the arrays": (
        lambda: load_torch(
            broken(lambda c, _: c["model_state_dict"].update({"norm.mean": normal(2)})),
            mapping=None,
        ),
        ValueError,
        ["2 parameters", "norm.mean"],
    ),
    "mapping without a parameter": (
        lambda: load_torch(
            torch_checkpoint(),
            mapping={"dense.bias": Leaf("dense/bias")},
            names=list(SHAPES),
        ),
        ValueError,
        ["the mapping has no 'dense.weight'"],
    ),
    "mapping with an unknown parameter": (
        lambda: load_torch(torch_checkpoint(), mapping=TORCH_MAPPING | {"x": Leaf("dense/x")}),
        ValueError,
        ["'x'", "dense.weight"],
    ),
    "mapping to nowhere": (
        lambda: load_torch(torch_checkpoint(), mapping=TORCH_MAPPING | {"dense.bias": Leaf("b")}),
        ValueError,
        ["dense.bias", "'b'", "dense/bias"],
    ),
    "mapping of strings": (
        lambda: load_torch(torch_checkpoint(), mapping=TORCH_MAPPING | {"dense.bias": "b"}),
        TypeError,
        ["dense.bias", "Leaf", "'b'"],
    ),
    "hyperparameter that is not a number": (
        lambda: load_torch(torch_checkpoint(), momentum=lambda _: 0.9),
        TypeError,
        ["momentum"],
    ),
    "two arrays for one leaf": (
        lambda: load_torch(
            torch_checkpoint(), mapping=TORCH_MAPPING | {"dense.bias": Leaf("dense/kernel")}
        ),
        ValueError,
        ["dense.bias", "dense.weight", "dense/kernel"],
    ),
    "a leaf that nothing is mapped to": (
        lambda: load_torch(torch_checkpoint(), params=PARAMS | {"new": jnp.zeros(1)}),
        ValueError,
        ["params", "'new'"],
    ),
    "not transposed": (
        lambda: load_torch(
            torch_checkpoint(), mapping=TORCH_MAPPING | {"dense.weight": Leaf("dense/kernel")}
        ),
        ValueError,
        ["dense.weight", "(2, 3)", "(3, 2)", "dense/kernel"],
    ),
    "transpose that is not a permutation": (
        lambda: load_torch(
            torch_checkpoint(),
            mapping=TORCH_MAPPING | {"dense.weight": Leaf("dense/kernel", transpose=(2, 0))},
        ),
        ValueError,
        ["dense.weight", "(2, 0)", "(2, 3)"],
    ),
    "reshape that is flattened differently": (
        with_leaf(Leaf("dense/kernel", transpose=(0, 2, 1), reshape=(2, 3, 1))),
        ValueError,
        ["dense.weight", "(2, 1, 3)", "(3, 2)"],
    ),
    "reshape of another size": (
        with_leaf(Leaf("dense/kernel", transpose=(1, 0), reshape=(2, 4))),
        ValueError,
        ["dense.weight", "(2, 4)", "(2, 3)"],
    ),
    "two leaves with the same path": (
        lambda: load_torch(torch_checkpoint(), params=PARAMS | {"dense/bias": jnp.zeros(2)}),
        ValueError,
        ["two leaves have the same path", "dense/bias"],
    ),
    "a name twice": (
        lambda: load_torch(two_groups(), names=["dense.bias", "dense.bias"]),
        ValueError,
        ["names=", "once", "['dense.bias'] more than once"],
    ),
    "negative imaginary part": (
        lambda: interop.pytorch.load(
            {
                "model_state_dict": {"w": np.ones(2, complex)},
                "optimizer_state_dict": {
                    "state": {0: {"square_avg": np.full(2, 1 - 1j)}},
                    "param_groups": [group([0], centered=False, momentum=0.0)],
                },
            },
            {"w": jnp.zeros(2, jnp.complex64)},
        ),
        ValueError,
        ["w: square_avg", "negative"],
    ),
    "transpose that is one number": (
        with_leaf(Leaf("dense/kernel", transpose=1)),
        TypeError,
        ["dense.weight", "tuples of integers", "transpose=1"],
    ),
    "transpose of floats": (
        with_leaf(Leaf("dense/kernel", transpose=(1.0, 0.0))),
        TypeError,
        ["dense.weight", "tuples of integers", "(1.0, 0.0)"],
    ),
    "mapping that is a list": (
        lambda: load_torch(torch_checkpoint(), mapping=["dense.weight", "dense.bias"]),
        TypeError,
        ["mapping", "{name: Leaf}"],
    ),
    "one value too few for the groups": (
        lambda: load_torch(two_groups(), names=["dense.bias", "dense.weight"], lr=[0.1]),
        ValueError,
        ["lr=[0.1]", "2 param_groups"],
    ),
    "too large for the leaf": (
        lambda: load_torch(
            broken(lambda c, _: c["model_state_dict"].update({"dense.bias": np.full(2, 1e6)})),
            params=in_dtype(jnp.float16),
        ),
        ValueError,
        ["dense/bias, in float16, must be finite"],
    ),
    "average too large for float32": (
        lambda: load_torch(broken(put("square_avg", np.full((2, 3), 1e300)))),
        ValueError,
        ["var of dense/kernel, in float32, must be finite"],
    ),
    "complex for a real leaf": (
        lambda: load_torch(
            broken(lambda c, _: c["model_state_dict"].update({"dense.bias": np.ones(2, complex)}))
        ),
        TypeError,
        ["dense/bias is complex128", "float32"],
    ),
    "real for a complex leaf": (
        lambda: load_torch(torch_checkpoint(), params=in_dtype(jnp.complex64)),
        TypeError,
        ["dense/", "is float32", "complex64"],
    ),
    "save an uncentred state to a centred optimizer": (
        lambda: save_torch(optimizer=dialects.pytorch(momentum=0.9)),
        ValueError,
        ["dialects.pytorch", "missing", ".mu['dense']['kernel']"],
    ),
    "save momentum to an optimizer without": (
        lambda: save_torch(optimizer=dialects.pytorch(momentum=0.9), centered=False, momentum=0.0),
        ValueError,
        ["dialects.pytorch", "unexpected", ".trace['dense']['kernel']"],
    ),
    "save the state of another dialect": (
        lambda: save_torch(optimizer=dialects.keras(momentum=0.9, centered=True)),
        ValueError,
        ["dialects.pytorch", "missing", "unexpected"],
    ),
    "save the state of another optimizer": (
        lambda: save_torch(optimizer=optax.adadelta(0.1)),
        ValueError,
        ["dialects.pytorch", "e_g['dense']['kernel']"],
    ),
    "save without the step": (lambda: save_torch(step=None), ValueError, ["step must be given"]),
    "save with half a step": (lambda: save_torch(step=1.5), TypeError, ["step", ">= 0", "1.5"]),
    "save with a negative step": (lambda: save_torch(step=-1), ValueError, ["step", ">= 0", "-1"]),
    "save with a step of text": (lambda: save_torch(step="3"), TypeError, ["step", "'3'"]),
    "save parameters that are not finite": (
        lambda: save_torch(params=jax.tree.map(lambda x: x * jnp.nan, PARAMS)),
        ValueError,
        ["params: dense/", "finite"],
    ),
    "tensorflow: centred state, uncentred optimizer": (
        lambda: interop.tensorflow_v1.load(
            tensorflow_checkpoint(centered=True), PARAMS, learning_rate=0.1
        ),
        ValueError,
        ["dense/kernel has RMSProp_2", "centered=True"],
    ),
    "tensorflow: uncentred state, centred optimizer": (
        lambda: interop.tensorflow_v1.load(
            tensorflow_checkpoint(), PARAMS, learning_rate=0.1, centered=True
        ),
        ValueError,
        ["dense/kernel has no RMSProp_2"],
    ),
    "tensorflow: another optimizer": (
        lambda: interop.tensorflow_v1.load(
            {"w": normal(2), "w/Adam": normal(2)}, PARAMS, learning_rate=0.1
        ),
        ValueError,
        ["not a tf.compat.v1.train.RMSPropOptimizer", "w/Adam"],
    ),
    "tensorflow: a slot without its variable": (
        lambda: interop.tensorflow_v1.load({"w/RMSProp": normal(2)}, PARAMS, learning_rate=0.1),
        ValueError,
        ["slots of w", "no such variable"],
    ),
    "tensorflow: a schedule without a step": (
        lambda: interop.tensorflow_v1.load(
            {k: v for k, v in tensorflow_checkpoint().items() if k != "global_step"},
            PARAMS,
            learning_rate=lambda _: 0.1,
        ),
        ValueError,
        ["step", "global_step"],
    ),
    "tensorflow: unknown hyperparameter": (
        lambda: interop.tensorflow_v1.load(tensorflow_checkpoint(), PARAMS, lr=0.1),
        TypeError,
        ["tensorflow_v1()", "'lr'"],
    ),
    "optax: state with other options": (
        lambda: interop.optax.load(optax.rmsprop(0.1).init(PARAMS), PARAMS, **FREE, momentum=0.9),
        ValueError,
        ["source", "trace"],
    ),
    "optax: state of another optimizer": (
        lambda: interop.optax.load(optax.adam(0.1).init(PARAMS), PARAMS, **FREE),
        ValueError,
        ["source"],
    ),
    "optax: negative average": (
        lambda: interop.optax.load(
            jax.tree.map(lambda x: x - 1, optax.rmsprop(**FREE).init(PARAMS)), PARAMS, **FREE
        ),
        ValueError,
        ["nu of dense/", "negative"],
    ),
    "optax: target with other options": (
        lambda: interop.optax.save(
            optax.rmsprop(**FREE, momentum=0.9).init(PARAMS),
            PARAMS,
            rmsprop_jax.rmsprop(**FREE).init(PARAMS),
            **FREE,
        ),
        ValueError,
        ["target"],
    ),
    "tensorflow: bias-corrected averages": (
        lambda: interop.tensorflow_v1.save(
            tensorflow_checkpoint(centered=True),
            PARAMS,
            rmsprop_jax.rmsprop(**FREE, centered=True, bias_correction=True).init(PARAMS),
            step=1,
        ),
        ValueError,
        ["dialects.tensorflow_v1", "unexpected ['[0].count']"],
    ),
    "optax: nan in a parameter": (
        lambda: interop.optax.load(
            optax.rmsprop(**FREE).init(PARAMS), jax.tree.map(lambda x: x * jnp.nan, PARAMS), **FREE
        ),
        ValueError,
        ["params: dense/", "finite"],
    ),
    "tensorflow: save the state of another dialect": (
        lambda: interop.tensorflow_v1.save(
            tensorflow_checkpoint(), PARAMS, dialects.pytorch().init(PARAMS), step=1
        ),
        ValueError,
        ["dialects.tensorflow_v1", "missing", "unexpected"],
    ),
    "optax: nan in an average": (
        lambda: interop.optax.load(
            jax.tree.map(lambda x: x * jnp.nan, optax.rmsprop(**FREE).init(PARAMS)), PARAMS, **FREE
        ),
        ValueError,
        ["nu of dense/", "finite"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_rejected(case):
    call, error, parts = BAD[case]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    for part in parts:
        assert part in message
    assert len(message.splitlines()[0]) < 300
