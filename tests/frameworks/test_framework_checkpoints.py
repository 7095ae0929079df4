"""Checkpoints that the frameworks wrote: files, groups, dtypes, and which are rejected."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow.compat.v1 as tf
import torch

from rmsprop_jax import dialects, interop
from rmsprop_jax.interop import Leaf

ROUND_TRIP = Path(__file__).with_name("keras_round_trip.py")


def torch_model(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    return model.to(dtype)


def train_torch(model, optimizer, steps=3):
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(5, 1, 4, 4, dtype=dtype)).square().sum().backward()
        optimizer.step()


def torch_checkpoint(model, optimizer):
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }


def zeros_for(mapping, model):
    """A nested dictionary of zeros, with the shapes of the model's parameters as mapped."""
    tree = {}
    for name, w in model.named_parameters():
        *keys, last = mapping[name].path.split("/")
        branch = tree
        for key in keys:
            branch = branch.setdefault(key, {})
        if mapping[name].reshape is None:
            permutation = mapping[name].permutation(w.ndim)
            branch[last] = jnp.zeros(np.zeros(w.shape).transpose(permutation).shape)
        else:
            branch[last] = jnp.zeros(w.shape[::-1])
    return tree


def assert_state_dicts_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=0)


def test_pt_file_there_and_back(tmp_path):
    model = torch_model()
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9, centered=True)
    train_torch(model, optimizer)
    file = tmp_path / "run.pt"
    torch.save(torch_checkpoint(model, optimizer) | {"epoch": 2}, file)
    mapping = interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(file, zeros_for(mapping, model), mapping)
    assert restored.step == 3
    changed = jax.tree.map(lambda w: w + 1, restored.params)
    interop.pytorch.save(file, changed, restored.state, mapping, step=4)

    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    saved = torch.load(file, weights_only=True)
    assert saved["epoch"] == 2
    expected = {name: w + 1 for name, w in model.state_dict().items()}
    assert_state_dicts_equal(saved["model_state_dict"], expected)
    fresh = torch_model()
    fresh_optimizer = torch.optim.RMSprop(fresh.parameters(), momentum=0.9, centered=True)
    fresh.load_state_dict(saved["model_state_dict"])
    fresh_optimizer.load_state_dict(saved["optimizer_state_dict"])
    for ours, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        back, before = fresh_optimizer.state[ours], optimizer.state[theirs]
        assert back["step"] == 4
        assert_state_dicts_equal(back | {"step": before["step"]}, before)
    train_torch(fresh, fresh_optimizer)


def test_groups_of_a_real_optimizer():
    """Biases first, without decay; names by model.named_parameters()."""
    model = torch_model()
    biases = [(n, w) for n, w in model.named_parameters() if n.endswith("bias")]
    weights = [(n, w) for n, w in model.named_parameters() if n.endswith("weight")]
    optimizer = torch.optim.RMSprop(
        [
            {"params": biases, "lr": 1e-3},
            {"params": weights, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
        ]
    )
    train_torch(model, optimizer)
    mapping = interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(
        torch_checkpoint(model, optimizer), zeros_for(mapping, model), mapping
    )
    images = jnp.ones((5, 4, 4, 1))

    def loss(params):
        x = jax.lax.conv_general_dilated(
            images,
            params["0"]["kernel"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = (x + params["0"]["bias"]).reshape(5, -1)
        return jnp.sum((x @ params["2"]["kernel"] + params["2"]["bias"]) ** 2)

    params, state = restored.params, restored.state
    for _ in range(20):
        updates, state = restored.optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    train_torch(model, optimizer, steps=20)
    expected = interop.pytorch.load(torch_checkpoint(model, optimizer), params, mapping)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, expected.params
    )

    saved = interop.pytorch.save(
        torch_checkpoint(model, optimizer), params, state, mapping, step=23
    )
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    train_torch(model, optimizer)


def test_bfloat16_tensors():
    model = torch_model(torch.bfloat16)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9)
    train_torch(model, optimizer)
    mapping = interop.pytorch.mapping_of(model)
    like = jax.tree.map(lambda w: w.astype(jnp.bfloat16), zeros_for(mapping, model))
    checkpoint = torch_checkpoint(model, optimizer)
    restored = interop.pytorch.load(checkpoint, like, mapping)
    saved = interop.pytorch.save(checkpoint, restored.params, restored.state, mapping, step=3)
    assert_state_dicts_equal(saved["model_state_dict"], model.state_dict())
    for i, slots in checkpoint["optimizer_state_dict"]["state"].items():
        assert_state_dicts_equal(saved["optimizer_state_dict"]["state"][i], slots)


def test_tied_weights_stay_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.out = torch.nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(self.embed(x))

    model = Tied()
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    mapping = interop.pytorch.mapping_of(model)
    assert mapping == {"embed.weight": Leaf("embed/embedding")}
    checkpoint = torch_checkpoint(model, optimizer)
    restored = interop.pytorch.load(checkpoint, zeros_for(mapping, model), mapping)
    saved = interop.pytorch.save(
        checkpoint, {"embed": {"embedding": jnp.ones((5, 3))}}, restored.state, mapping, step=1
    )
    model.load_state_dict(saved["model_state_dict"])
    assert (model.embed.weight == 1).all()
    assert (model.out.weight == 1).all()


@pytest.mark.parametrize(
    ("layer", "leaf", "shape"),
    [
        (torch.nn.Linear(2, 3), "kernel", (2, 3)),
        (torch.nn.Conv1d(2, 3, 4), "kernel", (4, 2, 3)),
        (torch.nn.Conv2d(2, 3, (4, 5)), "kernel", (4, 5, 2, 3)),
        (torch.nn.Conv3d(2, 3, (4, 5, 6)), "kernel", (4, 5, 6, 2, 3)),
        (torch.nn.Embedding(2, 3), "embedding", (2, 3)),
        (torch.nn.BatchNorm2d(2), "scale", (2,)),
        (torch.nn.LayerNorm(2), "scale", (2,)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_mapping_of_a_layer_is_flaxs(layer, leaf, shape):
    mapped = interop.pytorch.mapping_of(torch.nn.ModuleDict({"one": layer}))["one.weight"]
    assert mapped.path == f"one/{leaf}"
    assert mapped.to_jax(layer.weight.detach().numpy(), shape).shape == shape


def test_second_name_of_a_tied_weight_is_rejected():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False)})
    model["b"] = model["a"]
    optimizer = torch.optim.RMSprop(model.parameters())
    with pytest.raises(ValueError, match=r"b\.weight is the same tensor as a\.weight"):
        interop.pytorch.load(
            torch_checkpoint(model, optimizer), {"w": jnp.zeros((2, 2))}, {"b.weight": Leaf("w")}
        )


def test_extra_state_of_a_module_is_kept():
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            assert state == {"version": 1}

    model = Extra(2, 2, bias=False)
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint, mapping = torch_checkpoint(model, optimizer), {"weight": Leaf("w")}
    restored = interop.pytorch.load(checkpoint, {"w": jnp.zeros((2, 2))}, mapping)
    saved = interop.pytorch.save(checkpoint, restored.params, restored.state, mapping, step=2)
    model.load_state_dict(saved["model_state_dict"])


def test_adam_of_torch_is_rejected():
    model = torch_model()
    optimizer = torch.optim.Adam(model.parameters())
    train_torch(model, optimizer)
    mapping = interop.pytorch.mapping_of(model)
    with pytest.raises(ValueError, match=r"not a torch.optim.RMSprop.*'alpha'"):
        interop.pytorch.load(torch_checkpoint(model, optimizer), zeros_for(mapping, model), mapping)


def keras_model(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    optimizer = optimizer or keras.optimizers.RMSprop(**options)
    model.compile(optimizer, "mse")
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    return model


def keras_like():
    return {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}


def load_keras(model, **options):
    prefix = model.trainable_variables[0].path.removesuffix("dense/kernel")
    mapping = {f"{prefix}dense/{kind}": Leaf(f"dense/{kind}") for kind in ("kernel", "bias")}
    return interop.keras.load(model.optimizer, keras_like(), mapping, **options)


def test_keras_file_there_and_back(tmp_path):
    model = keras_model(
        learning_rate=0.01, momentum=0.9, centered=True, weight_decay=0.1, clipvalue=1.0, rho=0.8
    )
    file = tmp_path / "run.keras"
    model.save(file)
    restored = interop.keras.load(file, keras_like())  # a loaded model's paths are dense/kernel
    assert restored.step == 1
    hyperparameters = dict(restored.hyperparameters[0])
    assert hyperparameters.pop("learning_rate") == pytest.approx(0.01)
    assert hyperparameters == {
        "rho": 0.8,
        "momentum": 0.9,
        "epsilon": 1e-7,
        "centered": True,
        "weight_decay": 0.1,
        "clipnorm": None,
        "clipvalue": 1.0,
        "global_clipnorm": None,
    }
    live = load_keras(model)
    jax.tree.map(np.testing.assert_array_equal, restored.params, live.params)
    jax.tree.map(np.testing.assert_array_equal, restored.state, live.state)

    changed = jax.tree.map(lambda w: w + 1, restored.params)
    interop.keras.save(file, changed, restored.state, step=5)
    assert [f.name for f in tmp_path.iterdir()] == ["run.keras"]
    back = interop.keras.load(file, keras_like())
    assert back.step == 5
    jax.tree.map(np.testing.assert_array_equal, back.params, changed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), back.state, restored.state
    )


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_keras_on_each_backend(backend):
    environment = os.environ | {"KERAS_BACKEND": backend}
    result = subprocess.run(
        [sys.executable, ROUND_TRIP], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split()[-2:] == [backend, "agrees"]


def test_schedule_of_keras_is_replaced_by_one_of_optax():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = keras_model(learning_rate=schedule)
    with pytest.warns(UserWarning, match=r"ExponentialDecay.*0\.05.*learning_rate="):
        load_keras(model)
    restored = load_keras(model, learning_rate=optax.exponential_decay(0.1, 1, 0.5))
    gradient = jax.tree.map(jnp.ones_like, restored.params)
    updates, _ = restored.optimizer.update(gradient, restored.state, restored.params)
    at_step_one = dialects.keras(0.05)
    expected, _ = at_step_one.update(
        gradient, load_keras(model, learning_rate=0.05).state, restored.params
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_schedule_object_of_keras_is_rejected():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    with pytest.raises(ValueError, match=r"ExponentialDecay.*written for Optax"):
        load_keras(keras_model(), learning_rate=schedule)


def test_folder_of_tensorflow_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        interop.tensorflow_v1.load(tmp_path, keras_like(), learning_rate=0.1)


class RMSprop(keras.optimizers.RMSprop):
    """A user's own subclass with the same name."""


KERAS_REJECTED = {
    "another optimizer": (lambda: keras_model(keras.optimizers.Adam()), "not a keras.*Adam"),
    "own subclass": (lambda: keras_model(RMSprop()), "not a keras.*RMSprop"),
    "averaged weights": (lambda: keras_model(use_ema=True), "use_ema=True"),
    "accumulated gradients": (
        lambda: keras_model(gradient_accumulation_steps=2),
        "gradient_accumulation_steps=2",
    ),
}


@pytest.mark.parametrize("case", KERAS_REJECTED)
def test_keras_optimizers_that_are_rejected(case):
    make, message = KERAS_REJECTED[case]
    with pytest.raises(ValueError, match=message):
        load_keras(make())


def test_keras_excluded_from_weight_decay_is_rejected():
    optimizer = keras.optimizers.RMSprop(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = keras_model(optimizer)
    with pytest.raises(ValueError, match="dense/bias is excluded from weight decay"):
        load_keras(model)
    load_keras(model, weight_decay=None)


def test_keras_constraint_is_rejected():
    model = keras_model()
    model.layers[0].kernel.constraint = keras.constraints.NonNeg()
    with pytest.raises(ValueError, match="dense/kernel has a constraint"):
        load_keras(model)


def test_keras_variables_with_the_same_path_are_rejected():
    optimizer = keras.optimizers.RMSprop()
    optimizer.build([keras.Variable(np.ones(2), name="w") for _ in range(2)])
    with pytest.raises(ValueError, match="two variables have the same path"):
        interop.keras.load(optimizer, {"w": jnp.zeros(2)})


def test_keras_without_state_is_rejected():
    with pytest.raises(ValueError, match=r"optimizer\.build"):
        interop.keras.load(keras.optimizers.RMSprop(), keras_like())


def test_keras_file_without_optimizer_is_rejected(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match="no optimizer"):
        interop.keras.load(tmp_path / "a.keras", keras_like())


def test_keras_nan_is_rejected_by_name():
    model = keras_model()
    model.optimizer.variables[2].assign(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="dense/kernel: velocity must be finite"):
        load_keras(model)


def test_keras_is_untouched_when_saving_fails():
    model = keras_model(momentum=0.9)
    before = [v.numpy() for v in model.optimizer.variables + model.trainable_variables]
    restored = load_keras(model)
    bad = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.full(2, jnp.nan)}}
    mapping = {v.path: Leaf("/".join(v.path.split("/")[-2:])) for v in model.trainable_variables}
    with pytest.raises(ValueError, match="dense/bias must be finite"):
        interop.keras.save(model.optimizer, bad, restored.state, mapping, step=2)
    for dialect, field in ((dialects.keras(), "trace"), (dialects.pytorch(momentum=0.9), "nu")):
        state = dialect.init(keras_like())
        with pytest.raises(ValueError, match=rf"dialects\.keras.*missing.*{field}"):
            interop.keras.save(model.optimizer, keras_like(), state, mapping, step=2)
    for step, error in (("3", TypeError), (-1, ValueError), (None, ValueError)):
        with pytest.raises(error, match="step must be"):
            interop.keras.save(model.optimizer, keras_like(), restored.state, mapping, step=step)
    after = [v.numpy() for v in model.optimizer.variables + model.trainable_variables]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_variables_of_a_tensorflow_checkpoint_are_kept(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    with tf.Graph().as_default(), tf.Session() as session:
        w = tf.get_variable("w", initializer=tf.constant([1.0, 2.0]))
        others = [tf.Variable(value) for value in ("text", 3, [True, False])]
        step = tf.train.create_global_step()
        with tf.variable_scope("train"):
            optimizer = tf.train.RMSPropOptimizer(0.1, momentum=0.9, name="own")
            update = optimizer.minimize(tf.reduce_sum(w * w), global_step=step)
        saver = tf.train.Saver()
        session.run(tf.global_variables_initializer())
        session.run(update)
        saver.save(session, prefix)
        kept = session.run(others)

        restored = interop.tensorflow_v1.load(
            prefix, {"w": jnp.zeros(2)}, name="own", learning_rate=0.1, momentum=0.9
        )
        assert restored.step == 1
        params = {"w": restored.params["w"] + 1}
        interop.tensorflow_v1.save(prefix, params, restored.state, name="own", step=5)
        before = session.run([w, *optimizer.variables()])
        session.run(update)
        saver.restore(session, prefix)
        assert session.run(step) == 5
        after = session.run([w, *optimizer.variables()])
        np.testing.assert_allclose(after[0], before[0] + 1)
        for a, b in zip(after[1:], before[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        for a, b in zip(session.run(others), kept, strict=True):
            np.testing.assert_array_equal(a, b)
