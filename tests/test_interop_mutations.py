"""Mutated checkpoints: each is read correctly, or rejected by name.

`hypothesis` changes one thing in a complete checkpoint: a key is missing, an array has another
dtype, shape or order, contains a NaN or a negative number, or is not an array.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsprop_jax import interop
from rmsprop_jax.interop import Leaf

RNG = np.random.default_rng(0)
# Two have the same shape, so that only their names tell them apart.
SHAPES = {"out.weight": (2, 3), "out.bias": (2,), "norm.weight": (2,)}
LEAVES = {"out.weight": ("out", "w"), "out.bias": ("out", "b"), "norm.weight": ("norm", "w")}
MAPPING = {name: Leaf("/".join(keys)) for name, keys in LEAVES.items()}
PARAMS = {
    "out": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)},
    "norm": {"w": jnp.zeros(2)},
}


def array(shape):
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def torch_checkpoint():
    group = {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.9}
    model = {name: array(shape) for name, shape in SHAPES.items()}
    return {
        "epoch": 3,
        "model_state_dict": model | {"norm.running_mean": array((2,))},
        "optimizer_state_dict": {
            "state": {
                i: {"step": 5, "square_avg": array(shape), "momentum_buffer": array(shape)}
                for i, shape in enumerate(SHAPES.values())
            },
            "param_groups": [group | {"centered": False, "params": [0, 1, 2]}],
        },
    }


def tensorflow_checkpoint():
    variables = {"global_step": np.int64(5), "other": array((3,))}
    for name, shape in SHAPES.items():
        slots = ("", "/RMSProp", "/RMSProp_1")
        variables |= {f"{name.replace('.', '/')}{slot}": array(shape) for slot in slots}
    return variables


def load_torch(checkpoint):
    return interop.pytorch.load(checkpoint, PARAMS, MAPPING)


def load_tensorflow(variables):
    mapping = {name.replace(".", "/"): leaf for name, leaf in MAPPING.items()}
    options = {"learning_rate": 0.01, "momentum": 0.9}
    return interop.tensorflow_v1.load(variables, PARAMS, mapping, **options)


def torch_arrays(checkpoint):
    """Each parameter's arrays as torch would read them: entries are numbered like parameters."""
    model = checkpoint["model_state_dict"]
    states = checkpoint["optimizer_state_dict"]["state"]
    return {
        name: (model[name], states[i]["square_avg"], states[i]["momentum_buffer"])
        for i, name in enumerate(SHAPES)
    }


def tensorflow_arrays(variables):
    """Each variable's arrays; momentum has the opposite sign there."""
    found = {}
    for name in SHAPES:
        key = name.replace(".", "/")
        momentum = -np.asarray(variables[f"{key}/RMSProp_1"])
        found[name] = (variables[key], variables[f"{key}/RMSProp"], momentum)
    return found


FORMATS = {
    "pytorch": (torch_checkpoint(), load_torch, torch_arrays),
    "tensorflow_v1": (tensorflow_checkpoint(), load_tensorflow, tensorflow_arrays),
}


def paths_of(tree, path=()):
    """Every path in nested dictionaries and lists, except the root's."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*path, key))


def parent_of(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


def replaced_by(value):
    def mutate(tree, path):
        parent_of(tree, path)[path[-1]] = copy.copy(value)

    return mutate


def of_array(make):
    """A mutation of arrays; anything else stays."""

    def mutate(tree, path):
        parent, key = parent_of(tree, path), path[-1]
        if isinstance(parent[key], np.ndarray):
            parent[key] = make(parent[key])

    return mutate


def with_first(value):
    def put(x):
        x = x.copy()
        x.flat[0] = value
        return x

    return of_array(put)


def dropped(tree, path):
    parent_of(tree, path).pop(path[-1])


def reversed_order(tree, path):
    parent, key = parent_of(tree, path), path[-1]
    if isinstance(parent[key], dict):
        parent[key] = dict(reversed(parent[key].items()))


def in_order_of_names(tree, path):
    parent, key = parent_of(tree, path), path[-1]
    if isinstance(parent[key], dict):
        parent[key] = dict(sorted(parent[key].items(), key=lambda item: str(item[0])))


MUTATIONS = {
    "dropped": dropped,
    "reversed": reversed_order,
    "sorted": in_order_of_names,
    "nan": with_first(np.nan),
    "infinite": with_first(np.inf),
    "negative": with_first(-1),
    "float16": of_array(lambda x: x.astype(np.float16)),
    "float64": of_array(lambda x: x.astype(np.float64)),
    "int32": of_array(lambda x: x.astype(np.int32)),
    "complex": of_array(lambda x: x.astype(complex)),
    "objects": of_array(lambda x: x.astype(object)),
    "flat": of_array(np.ravel),
    "extra axis": of_array(lambda x: x[None]),
    "transposed": of_array(lambda x: np.array(x.T)),
    "shorter": of_array(lambda x: x[:-1]),
    "None": replaced_by(None),
    "a word": replaced_by("word"),
    "a list": replaced_by([1.0]),
    "a dictionary": replaced_by({}),
    "-1": replaced_by(-1),
    "2.5": replaced_by(2.5),
}


def names_in(path):
    """What an error may call ``path``: its keys, and the parameter that a number stands for."""
    # A complex array for a real leaf is rejected by the leaf's path.
    numbers = [[*SHAPES][key] for key in path if isinstance(key, int) and key < len(SHAPES)]
    keys = [key for key in path if isinstance(key, str)]
    names = numbers + keys + [key.partition("/RMSProp")[0] for key in keys]
    dotted = [name.replace("/", ".") for name in names]
    leaves = ["/".join(LEAVES[name]) for name in dotted if name in LEAVES]
    return [*names, *leaves, *(["optimizer"] if "optimizer_state_dict" in path else [])]


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_read_correctly_or_rejected_by_name(kind, data):
    original, load, arrays_of = FORMATS[kind]
    path = data.draw(st.sampled_from([*paths_of(original)]))
    mutation = data.draw(st.sampled_from([*MUTATIONS]))
    checkpoint = copy.deepcopy(original)
    MUTATIONS[mutation](checkpoint, path)
    given_ = copy.deepcopy(checkpoint)
    restored, message = None, ""
    try:
        restored = load(checkpoint)
    except (ValueError, TypeError) as error:
        message = str(error)
    if restored is None:
        assert any(name in message for name in names_in(path)), (mutation, path, message)
        assert len(message) < 500
    elif restored.fresh:  # An empty state is one before the first step.
        assert checkpoint["optimizer_state_dict"]["state"] == {}
        assert restored.step == 0
    else:
        leaves = {f: optax.tree_utils.tree_get(restored.state, f) for f in ("nu", "trace")}
        for name, (value, square, momentum) in arrays_of(checkpoint).items():
            a, b = LEAVES[name]
            np.testing.assert_allclose(restored.params[a][b], value, rtol=1e-3)
            np.testing.assert_allclose(leaves["nu"][a][b], square, rtol=1e-3)
            np.testing.assert_allclose(leaves["trace"][a][b], momentum, rtol=1e-3)
            assert all(np.isfinite(x[a][b]).all() for x in leaves.values())
        assert restored.step in (0, 5, None)
    # The caller's dictionary is unchanged.
    assert jax.tree.structure(checkpoint) == jax.tree.structure(given_)
