"""torch's checkpoints as people have them, in NumPy arrays: which are read and which rejected.

The cases are from public reports. With torch itself: tests/frameworks.
"""

import sys
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rmsprop_jax import dialects, interop
from rmsprop_jax.interop import Leaf

GROUP = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.0, "momentum": 0.0}
GROUP |= {"centered": False}


def filled(value, shape=(2, 2)):
    return np.full(shape, value, np.float32)


def entry(square, shape=(2, 2), step=5, **others):
    return {"step": step, "square_avg": filled(square, shape), **others}


def optimizer(states, params=None, **group):
    params = list(states if params is None else params)
    return {"state": states, "param_groups": [GROUP | group | {"params": params}]}


def checkpoint(model, states, params=None, **group):
    return {
        "model_state_dict": model,
        "optimizer_state_dict": optimizer(states, params, **group),
    }


def two_layers():
    """Two weights, a and b, whose averages are 1 and 2 everywhere."""
    return checkpoint(
        {"b.weight": filled(20.0), "a.weight": filled(10.0, (3,))},
        {0: entry(2.0), 1: entry(1.0, (3,))},
    )


TWO = {"a": {"weight": jnp.zeros(3)}, "b": {"weight": jnp.zeros((2, 2))}}


def nu(restored):
    return optax.tree_utils.tree_get(restored.state, "nu")


def step_of(restored, gradient):
    gradients = jax.tree.map(lambda w: jnp.full_like(w, gradient), restored.params)
    updates, _ = restored.optimizer.update(gradients, restored.state, restored.params)
    return jax.tree.leaves(updates)


# Never misread: which RMSprop it is.

ONE_STEP = GROUP | {"momentum": 0.9}
TIMM = {"lr_in_momentum": False, "decoupled_decay": False, "caution": False}
TIMM_NOW = TIMM | {"corrected_weight_decay": False, "max_lr_snapshot": None, "foreach": None}
RULES = {
    # -lr (momentum m + g / (sqrt(v') + eps)), -lr (momentum m + g / sqrt(v' + eps)).
    "torch": ({}, {}, dialects.pytorch, 0.9 * 0.01 + 0.01 / (1e-2 + 1e-3)),
    "stable_baselines3": (
        {},
        {"dialect": "stable_baselines3"},
        dialects.stable_baselines3,
        0.9 * 0.01 + 0.01 / np.sqrt(1e-4 + 1e-3),
    ),
    "timm": (TIMM, {}, dialects.timm, 0.9 * 0.01 + 0.01 / np.sqrt(1e-4 + 1e-3)),
    "timm, rate in the momentum": (
        TIMM_NOW | {"lr_in_momentum": True},
        {},
        dialects.timm,
        (0.9 * 0.01 + 0.1 * 0.01 / np.sqrt(1e-4 + 1e-3)) / 0.1,
    ),
    "an old torch, capturable": (
        {"maximize": False, "foreach": None, "capturable": True, "differentiable": False},
        {"dialect": "pytorch"},
        dialects.pytorch,
        0.9 * 0.01 + 0.01 / (1e-2 + 1e-3),
    ),
    "rate as a tensor of one element": (
        {"lr": np.array([0.1])},
        {},
        dialects.pytorch,
        0.9 * 0.01 + 0.01 / (1e-2 + 1e-3),
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_the_run_continues_with_its_own_rule(case):
    keys, options, dialect, expected = RULES[case]
    source = checkpoint(
        {"w": filled(1.0, (1,))},
        {0: entry(1e-4, (1,), momentum_buffer=filled(0.01, (1,)))},
        **ONE_STEP | keys,
    )
    restored = interop.pytorch.load(source, {"w": jnp.zeros(1)}, **options)
    [update] = step_of(restored, 0.01)
    np.testing.assert_allclose(update, -0.1 * expected, rtol=1e-5)
    expected_state = dialect(**restored.hyperparameters[0]).init(restored.params)
    assert jax.tree.structure(restored.state) == jax.tree.structure(expected_state)


# Never misread: names and order.


def eleven(names):
    """2x2 weights filled with their own number, as are their averages; the model has this order."""
    return checkpoint(
        {name: filled(float(name.split(".")[0])) for name in names},
        {i: entry(float(i)) for i in range(11)},
    )


ELEVEN = [f"{i}.weight" for i in range(11)]
ELEVEN_PARAMS = {str(i): {"weight": jnp.zeros((2, 2))} for i in range(11)}
IN_ORDER = {name: Leaf(name.replace(".", "/")) for name in ELEVEN}


class ModulesOwn(dict):
    """A dictionary from a torch module: its mark says that it has the module's order."""

    _metadata = {}  # noqa: RUF012


ORDERS = {
    "names": (sorted(ELEVEN), IN_ORDER, {"names": ELEVEN}),
    "the module's order": (ELEVEN, IN_ORDER, {}),
    "the module's order, without a mapping": (ELEVEN, None, {}),
}


@pytest.mark.parametrize("case", ORDERS)
def test_each_average_reaches_its_own_parameter(case):
    order, mapping, options = ORDERS[case]
    restored = interop.pytorch.load(eleven(order), ELEVEN_PARAMS, mapping, **options)
    for i in range(11):
        np.testing.assert_array_equal(nu(restored)[str(i)]["weight"], i)
        np.testing.assert_array_equal(restored.params[str(i)]["weight"], i)


@pytest.mark.parametrize("mapping", [None, {n: IN_ORDER[n] for n in sorted(ELEVEN)}])
def test_sorted_names_do_not_prove_the_order(mapping):
    with pytest.raises(ValueError, match=r"order is not certain.*names="):
        interop.pytorch.load(eleven(sorted(ELEVEN)), ELEVEN_PARAMS, mapping)


def test_natural_order_does_not_prove_it_either():
    source = checkpoint(
        {"1.weight": filled(1.0), "2.weight": filled(2.0)}, {0: entry(1.0), 1: entry(2.0)}
    )
    params = {"1": {"weight": jnp.zeros((2, 2))}, "2": {"weight": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match="names="):
        interop.pytorch.load(source, params)
    # With the module's own order.
    source["model_state_dict"] = ModulesOwn(source["model_state_dict"])
    assert nu(interop.pytorch.load(source, params))["2"]["weight"][0, 0] == 2


def test_a_mapping_made_from_a_sorted_dictionary_does_not_prove_it_either():
    """Sorted as in safetensors: norm.bias before norm.weight; the module has norm.weight first."""
    names = ["dense.weight", "norm.bias", "norm.weight"]
    source = checkpoint(
        {"dense.weight": filled(0.0)} | {name: filled(0.0, (2,)) for name in names[1:]},
        {0: entry(0.5), 1: entry(1.0, (2,)), 2: entry(2.0, (2,))},
    )
    mapping = {name: Leaf(name.replace(".", "/")) for name in names}
    params = {
        "dense": {"weight": jnp.zeros((2, 2))},
        "norm": {"weight": jnp.zeros(2), "bias": jnp.zeros(2)},
    }
    with pytest.raises(ValueError, match="names="):
        interop.pytorch.load(source, params, mapping)
    order = ["dense.weight", "norm.weight", "norm.bias"]
    restored = interop.pytorch.load(source, params, mapping, names=order)
    np.testing.assert_array_equal(nu(restored)["norm"]["weight"], 1)


def test_a_mapping_in_a_different_order_from_the_model_asks_for_names():
    mapping = {name: IN_ORDER[name] for name in reversed(ELEVEN)}
    with pytest.raises(ValueError, match="names="):
        interop.pytorch.load(eleven(ELEVEN), ELEVEN_PARAMS, mapping)


def test_shapes_that_differ_show_the_order():
    source = two_layers()
    source["model_state_dict"] = dict(sorted(source["model_state_dict"].items()))
    restored = interop.pytorch.load(source, TWO)
    np.testing.assert_array_equal(nu(restored)["a"]["weight"], 1)
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 2)


def test_recorded_names_win_over_the_models_order():
    source = eleven(sorted(ELEVEN))
    source["optimizer_state_dict"]["param_groups"][0]["param_names"] = ELEVEN
    restored = interop.pytorch.load(source, ELEVEN_PARAMS)
    np.testing.assert_array_equal(nu(restored)["10"]["weight"], 10)


# Containers and prefixes in common use.

CONTAINERS = {
    "torch's tutorial": lambda m, o: {"model_state_dict": m, "optimizer_state_dict": o, "epoch": 1},
    "state_dict": lambda m, o: {"state_dict": m, "optimizer": o, "best_acc1": 0.5, "arch": "net"},
    "model": lambda m, o: {"model": m, "optimizer": o, "args": {"lr": 0.1}},
    "other words": lambda m, o: {"net": m, "opt": o},
    "Lightning": lambda m, o: {
        "state_dict": m,
        "optimizer_states": [o],
        "lr_schedulers": [],
        "pytorch-lightning_version": "2.5",
        "callbacks": {},
        "loops": {"fit_loop": {"state_dict": {}}},
    },
    "an array beside them": lambda m, o: {"net": m, "opt": o, "loss": np.float32(0.3)},
    "a scheduler beside them": lambda m, o: {
        "model": m,
        "optimizer": o,
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [0.1]},
    },
    "an average of the weights beside them": lambda m, o: {"state_dict": m, "ema": m, "opt": o},
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers_are_read_and_written(case):
    source = two_layers()
    model, states = source["model_state_dict"], source["optimizer_state_dict"]
    source = CONTAINERS[case](model, states)
    restored = interop.pytorch.load(source, TWO)
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 2)
    params = jax.tree.map(lambda w: w + 1, restored.params)
    saved = interop.pytorch.save(source, params, restored.state, step=6)
    new_model = {name: w + 1 for name, w in model.items()}
    new_states = states | {"state": {i: s | {"step": 6} for i, s in states["state"].items()}}
    expected = CONTAINERS[case](new_model, new_states)
    if "ema" in source:  # Not the trained weights.
        expected["ema"] = model
    assert jax.tree.structure(saved) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, saved, expected)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "net.", "model.backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("mapped", [False, True])
def test_one_prefix_is_removed(prefix, mapped):
    source = two_layers()
    model = source["model_state_dict"]
    source["model_state_dict"] = {prefix + name: w for name, w in model.items()}
    mapping = {name: Leaf(name.replace(".", "/")) for name in model} if mapped else None
    restored = interop.pytorch.load(source, TWO, mapping)
    np.testing.assert_array_equal(restored.params["a"]["weight"], 10)
    saved = interop.pytorch.save(source, restored.params, restored.state, mapping, step=6)
    assert [*saved["model_state_dict"]] == [prefix + name for name in model]


def test_a_submodule_that_was_compiled_alone():
    source = two_layers()
    model = {n.replace("a.", "a._orig_mod."): w for n, w in source["model_state_dict"].items()}
    source["model_state_dict"] = model
    restored = interop.pytorch.load(source, TWO)
    np.testing.assert_array_equal(nu(restored)["a"]["weight"], 1)


def test_a_prefix_of_the_mapping_is_removed_too():
    mapping = {f"module.{x}.weight": Leaf(f"{x}/weight") for x in "ba"}
    restored = interop.pytorch.load(two_layers(), TWO, mapping)
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 2)


def test_two_prefixes_are_not_guessed():
    source = two_layers()
    model = source["model_state_dict"]
    both = {f"{x}.{name}": w for x in ("student", "teacher") for name, w in model.items()}
    source["model_state_dict"] = both
    with pytest.raises(ValueError, match=r"more than one prefix.*student.*teacher"):
        interop.pytorch.load(source, TWO)


# Buffers and untrained parameters.


def batch_norm():
    """A checkpoint of torch's BatchNorm."""
    return checkpoint(
        {
            "bn.weight": filled(1.0, (3,)),
            "bn.bias": filled(0.5, (3,)),
            "bn.running_mean": filled(7.0, (3,)),
            "bn.running_var": filled(8.0, (3,)),
            "bn.num_batches_tracked": np.int64(4),
        },
        {0: entry(1.0, (3,)), 1: entry(2.0, (3,))},
    )


BATCH_NORM = {
    "bn.weight": Leaf("bn/scale"),
    "bn.bias": Leaf("bn/bias"),
    "bn.running_mean": Leaf("bn/mean"),
    "bn.running_var": Leaf("bn/var"),
}
BATCH_NORM_PARAMS = {"bn": {"scale": jnp.zeros(3), "bias": jnp.zeros(3)}}


def test_running_statistics_are_returned_and_written():
    source = batch_norm()
    restored = interop.pytorch.load(source, BATCH_NORM_PARAMS, BATCH_NORM)
    assert restored.buffers.keys() == {"bn"}
    np.testing.assert_array_equal(restored.buffers["bn"]["mean"], 7)
    np.testing.assert_array_equal(restored.buffers["bn"]["var"], 8)
    new = jax.tree.map(lambda x: x + 1, restored.buffers)
    arguments = (restored.params, restored.state, BATCH_NORM)
    saved = interop.pytorch.save(source, *arguments, step=6, buffers=new)["model_state_dict"]
    np.testing.assert_array_equal(saved["bn.running_mean"], 8)
    np.testing.assert_array_equal(saved["bn.running_var"], 9)
    assert saved["bn.num_batches_tracked"] == 4
    kept = interop.pytorch.save(source, *arguments, step=6)["model_state_dict"]
    np.testing.assert_array_equal(kept["bn.running_mean"], 7)
    with pytest.raises(ValueError, match=r"buffers have no 'bn/var'.*bn.running_var"):
        interop.pytorch.save(
            source, *arguments, step=6, buffers={"bn": {"mean": new["bn"]["mean"]}}
        )


def test_buffers_are_not_parameters_without_a_mapping():
    params = {"bn": {"weight": jnp.zeros(3), "bias": jnp.zeros(3)}}
    source = batch_norm()
    source["model_state_dict"] = ModulesOwn(source["model_state_dict"])
    restored = interop.pytorch.load(source, params)
    np.testing.assert_array_equal(nu(restored)["bn"]["bias"], 2)
    np.testing.assert_array_equal(restored.buffers["bn"]["running_mean"], 7)
    # All returned buffers can be written, the integer too.
    assert restored.buffers["bn"]["num_batches_tracked"] == 4
    new = jax.tree.map(lambda x: x + 1, restored.buffers)
    saved = interop.pytorch.save(source, restored.params, restored.state, step=6, buffers=new)
    assert saved["model_state_dict"]["bn.num_batches_tracked"] == 5
    # Flax has no such counter: it stays.
    del new["bn"]["num_batches_tracked"]
    saved = interop.pytorch.save(source, restored.params, restored.state, step=6, buffers=new)
    assert saved["model_state_dict"]["bn.num_batches_tracked"] == 4
    np.testing.assert_array_equal(saved["model_state_dict"]["bn.running_mean"], 8)
    new["bn"]["num_batches_tracked"] = 5.0
    with pytest.raises(
        TypeError, match=r"buffers: bn/num_batches_tracked must have the dtype.*int64"
    ):
        interop.pytorch.save(source, restored.params, restored.state, step=6, buffers=new)


def test_running_statistics_are_not_parameters_if_one_is_left_out():
    """The optimizer has two parameters: the mapped one, and one without a state."""
    source = batch_norm()
    del source["optimizer_state_dict"]["state"][1]
    source["model_state_dict"] = ModulesOwn(source["model_state_dict"])
    mapping = {"bn.weight": Leaf("bn/scale")}
    restored = interop.pytorch.load(source, {"bn": {"scale": jnp.zeros(3)}}, mapping)
    np.testing.assert_array_equal(nu(restored)["bn"]["scale"], 1)


def test_running_statistics_of_a_model_alone():
    source = batch_norm()["model_state_dict"]
    options = {"missing": "fresh", "lr": 0.1}
    restored = interop.pytorch.load(source, BATCH_NORM_PARAMS, BATCH_NORM, **options)
    np.testing.assert_array_equal(restored.buffers["bn"]["mean"], 7)
    np.testing.assert_array_equal(restored.params["bn"]["scale"], 1)


BUFFERS_REJECTED = {
    "two with the same path": ({"bn.running_var": Leaf("bn/mean")}, "both mapped to 'bn/mean'"),
    "one below another": ({"bn.running_var": Leaf("bn/mean/x")}, "prefix of another's"),
    "axes that do not exist": (
        {"bn.running_var": Leaf("bn/var", transpose=(1, 0))},
        "bn.running_var: Leaf",
    ),
    "another size": ({"bn.running_var": Leaf("bn/var", reshape=(4,))}, "bn.running_var: Leaf"),
}


@pytest.mark.parametrize("case", BUFFERS_REJECTED)
def test_mappings_of_buffers_are_checked(case):
    mapping, text = BUFFERS_REJECTED[case]
    with pytest.raises(ValueError, match=text):
        interop.pytorch.load(batch_norm(), BATCH_NORM_PARAMS, BATCH_NORM | mapping)


def test_buffers_in_a_list_of_layers():
    source = batch_norm()
    source["model_state_dict"] = {
        name.replace("bn", "0"): x for name, x in source["model_state_dict"].items()
    }
    params = [{"scale": jnp.zeros(3), "bias": jnp.zeros(3)}]
    mapping = {
        name.replace("bn", "0"): Leaf(leaf.path.replace("bn", "0"))
        for name, leaf in BATCH_NORM.items()
    }
    restored = interop.pytorch.load(source, params, mapping)
    np.testing.assert_array_equal(restored.buffers["0"]["mean"], 7)


def test_an_empty_state_is_one_before_the_first_step():
    source = checkpoint(
        {"b.weight": filled(20.0), "a.weight": filled(10.0, (3,))}, {}, params=[0, 1]
    )
    source["model_state_dict"] = ModulesOwn(source["model_state_dict"])
    restored = interop.pytorch.load(source, TWO)
    assert restored.step == 0
    assert restored.fresh == ("a/weight", "b/weight")
    expected = restored.optimizer.init(restored.params)
    jax.tree.map(np.testing.assert_array_equal, restored.state, expected)
    np.testing.assert_array_equal(restored.params["a"]["weight"], 10)


def partly_trained(**group):
    """The layer b was frozen: the optimizer has no state for it."""
    source = two_layers()
    source["optimizer_state_dict"] = optimizer({1: entry(1.0, (3,))}, params=[0, 1], **group)
    source["model_state_dict"] = ModulesOwn(source["model_state_dict"])
    return source


def test_parameters_without_state_begin_anew_if_asked():
    with pytest.raises(ValueError, match=r"b\.weight.*have no optimizer state.*missing=\"fresh\""):
        interop.pytorch.load(partly_trained(), TWO)
    restored = interop.pytorch.load(partly_trained(), TWO, missing="fresh")
    assert restored.fresh == ("b/weight",)
    assert restored.step == 5
    np.testing.assert_array_equal(nu(restored)["a"]["weight"], 1)
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 0)
    np.testing.assert_array_equal(restored.params["b"]["weight"], 20)


def test_parameters_without_state_begin_like_the_dialect():
    """Averages of timm begin at one, not at zero."""
    restored = interop.pytorch.load(partly_trained(**TIMM), TWO, missing="fresh")
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 1)


def test_parameters_without_state_may_be_left_out():
    params = {"a": TWO["a"]}
    restored = interop.pytorch.load(partly_trained(), params, {"a.weight": Leaf("a/weight")})
    np.testing.assert_array_equal(nu(restored)["a"]["weight"], 1)
    assert restored.fresh == ()
    source = partly_trained()
    saved = interop.pytorch.save(
        source, restored.params, restored.state, {"a.weight": Leaf("a/weight")}, step=6
    )
    assert [*saved["optimizer_state_dict"]["state"]] == [1]
    np.testing.assert_array_equal(saved["model_state_dict"]["b.weight"], 20)


def test_a_frozen_parameter_never_moves():
    """A parameter that the optimizer did not receive, although all others decay."""
    source = checkpoint(
        ModulesOwn({"a.weight": filled(10.0, (3,)), "b.weight": filled(20.0)}),
        {0: entry(1.0, (3,))},
        weight_decay=0.5,
    )
    mapping = {f"{x}.weight": Leaf(f"{x}/weight") for x in "ab"}
    restored = interop.pytorch.load(source, TWO, mapping, names=["a.weight"])
    assert restored.fresh == ()
    moved, frozen = step_of(restored, 0.0)
    assert (moved < 0).all()
    np.testing.assert_array_equal(frozen, 0)
    np.testing.assert_array_equal(restored.params["b"]["weight"], 20)
    saved = interop.pytorch.save(
        source, restored.params, restored.state, mapping, names=["a.weight"], step=6
    )
    assert [*saved["optimizer_state_dict"]["state"]] == [0]


def test_a_resized_head_and_a_new_layer_begin_anew():
    params = TWO | {"a": {"weight": jnp.full(5, 3.0)}, "new": {"weight": jnp.full(2, 4.0)}}
    with pytest.raises(ValueError, match="new/weight"):
        interop.pytorch.load(two_layers(), params)
    restored = interop.pytorch.load(two_layers(), params, missing="fresh")
    assert restored.fresh == ("a/weight", "new/weight")
    np.testing.assert_array_equal(restored.params["a"]["weight"], 3)
    np.testing.assert_array_equal(restored.params["new"]["weight"], 4)
    np.testing.assert_array_equal(nu(restored)["a"]["weight"], np.zeros(5))
    np.testing.assert_array_equal(nu(restored)["b"]["weight"], 2)
    step_of(restored, 1.0)
    with pytest.raises(TypeError, match=r"a/weight.*must be an array, got a shape"):
        interop.pytorch.load(two_layers(), jax.eval_shape(lambda: params), missing="fresh")


def test_a_model_alone():
    source = two_layers()["model_state_dict"]
    with pytest.raises(ValueError, match=r"no optimizer.*missing=\"fresh\""):
        interop.pytorch.load(source, TWO)
    restored = interop.pytorch.load(source, TWO, missing="fresh", lr=0.1, momentum=0.9)
    assert restored.step == 0
    assert restored.fresh == ("a/weight", "b/weight")
    np.testing.assert_array_equal(restored.params["a"]["weight"], 10)
    assert restored.hyperparameters[0]["momentum"] == 0.9


def test_missing_does_not_hide_a_wrong_mapping():
    """Nothing mapped at all, or axes that were not transposed, are not new layers."""
    source = two_layers()["model_state_dict"]
    with pytest.raises(ValueError, match="nothing in the checkpoint is mapped to params"):
        interop.pytorch.load(source, {"c": jnp.zeros(2)}, missing="fresh", lr=0.1)
    source = {"a": filled(1.0, (2, 3)), "b": filled(1.0)}
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"a: its array of shape \(2, 3\)"):
        interop.pytorch.load(source, params, missing="fresh", lr=0.1)


@pytest.mark.parametrize("value", [None, True, "new"])
def test_missing_is_one_of_two(value):
    with pytest.raises(ValueError, match=r'missing must be "error" or "fresh"'):
        interop.pytorch.load(two_layers(), TWO, missing=value)


# Leaves are identified by their keys.


def test_a_key_with_a_slash_is_a_different_leaf():
    params = {"mlp/w": jnp.zeros(2), "mlp": {"w": jnp.zeros(2)}}
    source = checkpoint(
        ModulesOwn({"one": filled(1.0, (2,)), "two": filled(2.0, (2,))}),
        {0: entry(1.0, (2,)), 1: entry(2.0, (2,))},
    )
    mapping = {"one": Leaf(("mlp/w",)), "two": Leaf(("mlp", "w"))}
    restored = interop.pytorch.load(source, params, mapping)
    np.testing.assert_array_equal(nu(restored)["mlp/w"], 1)
    np.testing.assert_array_equal(nu(restored)["mlp"]["w"], 2)
    saved = interop.pytorch.save(source, restored.params, restored.state, mapping, step=6)
    np.testing.assert_array_equal(saved["optimizer_state_dict"]["state"][1]["square_avg"], 2)
    with pytest.raises(ValueError, match=r"two: two leaves have the same path, 'mlp/w'"):
        interop.pytorch.load(source, params, mapping | {"two": Leaf("mlp/w")})


@pytest.mark.parametrize("end", [(), ("value",)])
def test_keys_may_be_numbers_as_in_a_flat_state(end):
    params = {"layers": [{"w": jnp.zeros(3)}, {"w": jnp.zeros(2)}]}
    source = checkpoint(
        {"one": filled(1.0, (2,)), "two": filled(2.0, (3,))},
        {0: entry(1.0, (2,)), 1: entry(2.0, (3,))},
    )
    mapping = {"one": Leaf(("layers", 1, "w", *end)), "two": Leaf(("layers", 0, "w", *end))}
    restored = interop.pytorch.load(source, params, mapping)
    np.testing.assert_array_equal(nu(restored)["layers"][1]["w"], 1)
    with pytest.raises(TypeError, match="its keys must be names of the checkpoint, got 3"):
        interop.pytorch.load(source, params, {3: Leaf("x")})


@pytest.mark.parametrize("suffix", ["", "/value"])
@pytest.mark.parametrize("pure", [False, True])
def test_flaxs_states_and_pure_dictionaries_are_alike(pure, suffix):
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state) if pure else state
    source = checkpoint(
        {"weight": filled(1.0, (3, 2)), "bias": filled(2.0, (3,))},
        {0: entry(3.0, (3, 2)), 1: entry(4.0, (3,))},
    )
    mapping = {"weight": Leaf("kernel" + suffix, (1, 0)), "bias": Leaf("bias" + suffix)}
    restored = interop.pytorch.load(source, params, mapping)
    assert jax.tree.structure(restored.params) == jax.tree.structure(params)
    assert sorted(x.sum() for x in jax.tree.leaves(restored.params)) == [6, 6]
    saved = interop.pytorch.save(source, restored.params, restored.state, mapping, step=5)
    np.testing.assert_array_equal(saved["model_state_dict"]["weight"], filled(1.0, (3, 2)))


# A scheduler's mark.


def test_a_schedule_that_is_not_in_the_checkpoint_is_warned_about():
    source = two_layers()
    source["optimizer_state_dict"]["param_groups"][0] |= {"initial_lr": 0.8, "max_lr": 1.0}
    with pytest.warns(UserWarning, match=r"scheduler.*0\.1.*lr=") as warned:
        interop.pytorch.load(source, TWO)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interop.pytorch.load(source, TWO, lr=0.1)


def test_a_momentum_that_a_scheduler_cycles_is_warned_about():
    source = two_layers()
    source["optimizer_state_dict"]["param_groups"][0] |= {"base_momentum": 0.8, "max_momentum": 0.9}
    with pytest.warns(UserWarning, match=r"scheduler set the momentum.*momentum="):
        interop.pytorch.load(source, TWO, lr=0.1)


# Rejected, by name.


def changed(change):
    """A checkpoint of two layers after ``change``, which receives it, its group and its states."""

    def make():
        source = two_layers()
        states = source["optimizer_state_dict"]
        change(
            SimpleNamespace(
                checkpoint=source, group=states["param_groups"][0], states=states["state"]
            )
        )
        return source

    return make


def set_step(step):
    return changed(lambda x: x.states[0].update(step=step))


REJECTED = {
    "key of another optimizer": (
        changed(lambda x: x.group.update(betas=(0.9, 0.99))),
        "param_groups[0] has 'betas'",
    ),
    "unknown key": (changed(lambda x: x.group.update(nesterov=True)), "'nesterov'"),
    "timm's caution": (changed(lambda x: x.group.update(TIMM, caution=True)), "caution=True"),
    "timm's corrected decay": (
        changed(lambda x: x.group.update(TIMM_NOW, corrected_weight_decay=True)),
        "corrected_weight_decay=True",
    ),
    "bitsandbytes' slot": (
        changed(lambda x: x.states[0].update(state1=x.states[0].pop("square_avg"))),
        "b.weight has no square_avg",
    ),
    "an extra slot": (
        changed(lambda x: x.states[0].update(state1=filled(1.0))),
        "b.weight has state1",
    ),
    "state of no parameter": (
        changed(lambda x: x.states.update({7: entry(1.0)})),
        "the optimizer's state has [7]",
    ),
    "state is None": (changed(lambda x: x.states.update({0: None})), "state[0]"),
    "state is a list": (changed(lambda x: x.states.update({0: [1]})), "state[0]"),
    "states are a list": (
        changed(lambda x: x.checkpoint["optimizer_state_dict"].update(state=[])),
        "'state' must be a dictionary",
    ),
    "groups are None": (
        changed(lambda x: x.checkpoint["optimizer_state_dict"].update(param_groups=None)),
        "'param_groups' must be a list",
    ),
    "a group that is not a dictionary": (
        changed(lambda x: x.checkpoint["optimizer_state_dict"].update(param_groups=[3])),
        "param_groups[0] must be a dictionary",
    ),
    "a group without params": (changed(lambda x: x.group.pop("params")), "param_groups[0]"),
    "a rate that is a word": (changed(lambda x: x.group.update(lr="fast")), "lr"),
    "an average that is a word": (
        changed(lambda x: x.states[0].update(square_avg="x")),
        "b.weight",
    ),
    "step -5": (set_step(-5), "b.weight: step must be a whole number >= 0"),
    "step 3.7": (set_step(3.7), "b.weight: step must be a whole number >= 0"),
    "step nan": (set_step(np.nan), "b.weight: step"),
    "step inf": (set_step(np.inf), "b.weight: step"),
    "step '7'": (set_step("7"), "b.weight: step"),
    "steps": (set_step([1, 2]), "b.weight: step"),
    "two models": (
        changed(
            lambda x: x.checkpoint.update(
                x=x.checkpoint.pop("model_state_dict"), y={"w": filled(1.0)}
            )
        ),
        "several models",
    ),
    "two optimizers": (
        changed(
            lambda x: x.checkpoint.update(
                x=x.checkpoint.pop("optimizer_state_dict"), y={"param_groups": [], "state": {}}
            )
        ),
        "several optimizers",
    ),
    "empty": (dict, "must be a dictionary of the state_dicts"),
    "not a dictionary": (lambda: 3, "must be a dictionary of the state_dicts"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_by_name(case):
    make, text = REJECTED[case]
    with pytest.raises((ValueError, TypeError)) as raised:
        interop.pytorch.load(make(), TWO)
    message = str(raised.value)
    assert text in message
    assert len(message) < 400


def test_a_step_too_large_for_the_schedules_count():
    with pytest.raises(ValueError, match="step must be at most 2147483647"):
        interop.pytorch.load(set_step(2**31)(), TWO, lr=lambda _: 0.1)


@pytest.mark.parametrize("dialect", ["adam", "keras", 3])
def test_dialect_is_one_of_three(dialect):
    with pytest.raises(ValueError, match=r"dialect must be None or one of \['pytorch', 'timm'"):
        interop.pytorch.load(two_layers(), TWO, dialect=dialect)


def test_dialect_cannot_hide_timms_keys():
    source = changed(lambda x: x.group.update(TIMM))()
    with pytest.raises(ValueError, match=r"param_groups\[0\] has 'lr_in_momentum'"):
        interop.pytorch.load(source, TWO, dialect="pytorch")


# Time.


class Compared(str):
    """A name whose comparisons `instructions_of` can count."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return str.__eq__(self, other)


def instructions_of(function):
    """The number of Python instructions that `interop` and this file run in ``function``."""
    count, before = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal count
        if "interop" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("mapped", [False, True])
def test_work_is_linear_in_the_number_of_parameters(mapped):
    """Counted, not timed: four times the parameters take about four times the instructions."""

    def count(n):
        names = [Compared(f"layer{i}.w") for i in range(n)]
        source = checkpoint(
            ModulesOwn({name: filled(1.0, (2,)) for name in names}),
            {i: entry(1.0, (2,)) for i in range(n)},
        )
        params = {f"layer{i}": {"w": jnp.zeros(2)} for i in range(n)}
        mapping = {name: Leaf(name.replace(".", "/")) for name in names} if mapped else None

        def there_and_back():
            restored = interop.pytorch.load(source, params, mapping)
            interop.pytorch.save(source, restored.params, restored.state, mapping, step=1)

        return instructions_of(there_and_back)

    few, many = count(50), count(200)
    assert few > 50
    assert many < 4.5 * few
