"""Every format of Keras: a run trained there continues in JAX alike, and is read there again."""

import json
import os
import stat
import warnings
import zipfile

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf
import tf_keras

from rmsprop_jax import dialects, interop
from rmsprop_jax.interop import Leaf, _keras_hdf5

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((8, 6, 6, 1)).astype(np.float32)
TARGETS = RNG.standard_normal((8, 2)).astype(np.float32)

SHAPES = {
    "conv/kernel": (3, 3, 1, 3),
    "conv/bias": (3,),
    "bn/gamma": (3,),
    "bn/beta": (3,),
    "z/kernel": (48, 4),
    "z/bias": (4,),
    "a/kernel": (4, 2),
    "a/bias": (2,),
}
MOVING = ("bn/moving_mean", "bn/moving_variance")
FULL = {"momentum": 0.9, "centered": True}


def network(framework, optimizer):
    """A model whose second dense layer comes before the first in the alphabet."""
    framework.utils.set_random_seed(0)
    layers = framework.layers
    model = framework.Sequential(
        [
            framework.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="tanh", name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(),
            layers.Dense(4, activation="tanh", name="z"),
            layers.Dense(2, name="a"),
        ],
        name="net",
    )
    model.compile(optimizer, framework.losses.MeanSquaredError())
    return model


def train(model, steps=3):
    for _ in range(steps):
        model.train_on_batch(IMAGES, TARGETS)
    return model


def loss(params):
    x = jax.lax.conv_general_dilated(
        IMAGES,
        params["conv"]["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jnp.tanh(x + params["conv"]["bias"])
    x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-3)
    x = x * params["bn"]["gamma"] + params["bn"]["beta"]
    x = jnp.tanh(x.reshape(len(x), -1) @ params["z"]["kernel"] + params["z"]["bias"])
    x = x @ params["a"]["kernel"] + params["a"]["bias"]
    return jnp.mean((x - TARGETS) ** 2)


def train_jax(restored, steps=3):
    params, state = restored.params, restored.state
    for _ in range(steps):
        updates, state = restored.optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def tree(arrays):
    """A nested dictionary, from one by path."""
    nested = {}
    for path, x in arrays.items():
        layer, kind = path.split("/")
        nested.setdefault(layer, {})[kind] = x
    return nested


def like():
    return tree({path: jnp.zeros(shape) for path, shape in SHAPES.items()})


# A run's contents according to its framework: {"value" or our slot: {path: array}}, and its step.


def contents_in_keras_3(model):
    arrays = [v.numpy() for v in model.optimizer.variables[2:]]
    blocks = [arrays[i : i + len(SHAPES)] for i in range(0, len(arrays), len(SHAPES))]
    config = model.optimizer.get_config()
    fields = ["nu", *["trace"] * (config["momentum"] > 0), *["mu"] * config["centered"]]
    found = dict(zip(fields, (dict(zip(SHAPES, b, strict=True)) for b in blocks), strict=True))
    return found | contents_of_model(model)


def contents_of_model(model):
    found = {getattr(v, "path", v.name).removesuffix(":0"): v.numpy() for v in model.variables}
    found = {"/".join(path.split("/")[-2:]): x for path, x in found.items()}
    return {
        "value": {path: found[path] for path in SHAPES},
        "moving": {path: found[path] for path in MOVING},
        "step": int(model.optimizer.iterations.numpy()),
    }


def contents_in_legacy(model):
    fields = {"rms": "nu", "momentum": "trace", "mg": "mu"}
    found = {
        field: {
            v.name.removesuffix(":0"): model.optimizer.get_slot(v, slot).numpy()
            for v in model.trainable_variables
        }
        for slot, field in fields.items()
        if slot in model.optimizer.get_slot_names()
    }
    return found | contents_of_model(model)


def contents_in_tf_keras(model):
    optimizer, found = model.optimizer, {}
    fields = {"velocity": "nu", "momentum": "trace", "average_gradient": "mu"}
    for v in optimizer.variables:
        parts = v.name.removesuffix(":0").removeprefix("RMSprop/").split("/")
        if parts[0] in fields:
            found.setdefault(fields[parts[0]], {})["/".join(parts[1:])] = v.numpy()
    return found | contents_of_model(model)


def quietly(call, *args, **options):
    """Calls a function without warnings: Keras advises against .h5 files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


class Format:
    """How a framework writes a format and reads it back."""

    framework, contents, options = keras, staticmethod(contents_in_keras_3), {}

    def model(self, **options):
        optimizer = self.framework.optimizers.RMSprop(0.01, epsilon=1e-3, **options)
        return network(self.framework, optimizer)

    def write(self, model, folder):  # noqa: ARG002
        return model

    def read(self, source, new):  # noqa: ARG002
        return source

    def given(self, options):  # noqa: ARG002
        """The hyperparameters that the format does not hold."""
        return {}


class KerasFile(Format):
    def write(self, model, folder):
        model.save(folder / "run.keras")
        return folder / "run.keras"

    def read(self, source, new):  # noqa: ARG002
        return self.framework.models.load_model(source)


class H5(Format):
    def write(self, model, folder):
        quietly(model.save, folder / "run.h5")
        return str(folder / "run.h5")

    def read(self, source, new):  # noqa: ARG002
        return quietly(self.framework.models.load_model, source)


class KerasH5(H5):
    def read(self, source, new):
        """Reads by hand: Keras 3.15 misreads its own optimizer's arrays."""
        with h5py.File(source) as file:
            averages = file["optimizer_weights"]
            for v, name in zip(
                new.optimizer.variables, averages.attrs["weight_names"], strict=True
            ):
                v.assign(averages[name][()])
            for v in new.variables:
                v.assign(file[f"model_weights/{v.path.split('/')[1]}/{v.path}"][()])
        return new


class Weights(Format):
    def write(self, model, folder):
        model.save_weights(folder / "run.weights.h5")
        return folder / "run.weights.h5"

    def read(self, source, new):
        new.load_weights(source)
        return new

    def given(self, options):
        return {"epsilon": 1e-3, **options}


class OfTfKeras:
    framework, contents = tf_keras, staticmethod(contents_in_tf_keras)


class OfLegacy:
    framework, contents = tf_keras, staticmethod(contents_in_legacy)

    def model(self, **options):
        optimizer = tf_keras.optimizers.legacy.RMSprop(0.01, epsilon=1e-3, **options)
        return network(tf_keras, optimizer)


class TfKerasLive(OfTfKeras, Format): ...


class TfKerasFile(OfTfKeras, KerasFile): ...


class TfKerasH5(OfTfKeras, H5): ...


class LegacyLive(OfLegacy, Format): ...


class LegacyH5(OfLegacy, H5): ...


class SavedWeights(OfLegacy, Format):
    def write(self, model, folder):
        model.save_weights(str(folder / "run"))
        return str(folder / "run")

    def read(self, source, new):
        new.load_weights(source).assert_consumed()
        return new

    def given(self, options):  # noqa: ARG002
        return {"epsilon": 1e-3}


class TrainCheckpoint(SavedWeights):
    def write(self, model, folder):
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        return checkpoint.save(str(folder / "run"))

    def read(self, source, new):
        checkpoint = tf.train.Checkpoint(model=new, optimizer=new.optimizer)
        checkpoint.restore(source).assert_consumed()
        return new


FORMATS = {
    "live": Format,
    ".keras": KerasFile,
    ".h5": KerasH5,
    ".weights.h5": Weights,
    "tf_keras live": TfKerasLive,
    "tf_keras .keras": TfKerasFile,
    "tf_keras .h5": TfKerasH5,
    "legacy live": LegacyLive,
    "legacy .h5": LegacyH5,
    "save_weights": SavedWeights,
    "tf.train.Checkpoint": TrainCheckpoint,
}


def mapping_for(name):
    """A mapping for .weights.h5 files, which have numbers; the others have the paths of params."""
    if name != ".weights.h5":
        return None
    layers = dict.fromkeys(("conv", "z", "a"), ("kernel", "bias"))
    layers["bn"] = ("gamma", "beta", "moving_mean", "moving_variance")
    return {
        f"{layer}/{i}": Leaf(f"{layer}/{kind}")
        for layer, kinds in layers.items()
        for i, kind in enumerate(kinds)
    }


def leaves(values):
    """{last two parts of the path: array}; a live model's buffers are below its name."""
    return {
        "/".join(jax.tree_util.keystr((k,), simple=True) for k in path[-2:]): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(values)
    }


def fields_of(state):
    """{field: {path: array}}, with Keras's sign of momentum, and with mean squares."""
    found = {field: {} for field in ("nu", "mu", "trace", "var")}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        names = [jax.tree_util.keystr((k,), simple=True) for k in path]
        for field in found.keys() & {*names}:
            found[field]["/".join(names[-2:])] = np.asarray(x)
    if found.pop("var", None) and found["mu"]:
        var = fields_raw(state, "var")
        found["nu"] = {path: var[path] + found["mu"][path] ** 2 for path in var}
    found["trace"] = {path: -x for path, x in found["trace"].items()}
    return {field: arrays for field, arrays in found.items() if arrays}


def fields_raw(state, field):
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        names = [jax.tree_util.keystr((k,), simple=True) for k in path]
        if field in names:
            found["/".join(names[-2:])] = np.asarray(x)
    return found


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, err_msg=name, **tolerance)


def assert_holds(restored, contents):
    """The restored run is the one that the framework reports."""
    assert_same(leaves(restored.params), contents["value"], rtol=0)
    fields = fields_of(restored.state)
    assert {"value", "moving", "step", *fields} == {*contents}
    for field, arrays in fields.items():
        assert_same(arrays, contents[field], rtol=1e-5, atol=1e-9)
    assert restored.step == contents["step"]


@pytest.mark.parametrize("options", [FULL, {}], ids=["full", "default"])
@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name, options, tmp_path):
    how, mapping = FORMATS[name](), mapping_for(name)
    model = train(how.model(**options))
    source = how.write(model, tmp_path)
    restored = interop.keras.load(source, like(), mapping, **how.given(options))
    contents = how.contents(model)
    assert_holds(restored, contents)
    assert_same(leaves(restored.buffers), contents["moving"], rtol=0)

    params, state = train_jax(restored)
    continued = how.contents(train(model))
    assert_same(leaves(params), continued["value"], rtol=2e-4, atol=2e-5)

    params = jax.tree.map(lambda w: w + 1, params)
    buffers = jax.tree.map(lambda x: x + 2, restored.buffers)
    files = sorted(os.listdir(tmp_path))
    saved = interop.keras.save(source, params, state, mapping, step=9, buffers=buffers)
    assert saved is source
    assert sorted(os.listdir(tmp_path)) == files
    contents_back = how.contents(how.read(source, train(how.model(**options), 1)))
    assert_same(contents_back["value"], leaves(params), rtol=0)
    assert_same(contents_back["moving"], leaves(buffers), rtol=0)
    for field, arrays in fields_of(state).items():
        assert_same(contents_back[field], arrays, rtol=1e-5, atol=1e-9)
    assert contents_back["step"] == 9
    again = interop.keras.load(source, like(), mapping, **how.given(options))
    assert_same(leaves(again.params), leaves(params), rtol=0)


# Bad input is rejected, and files are left unchanged.


def dense(optimizer, framework=keras, **options):
    """A small model, trained for one step."""
    framework.utils.set_random_seed(0)
    layers = [framework.Input((3,)), framework.layers.Dense(2, name="dense")]
    model = framework.Sequential(layers, name="net")
    model.compile(optimizer, framework.losses.MeanSquaredError(), **options)
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    return model


DENSE = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
DENSE_NUMBERS = {"dense/0": Leaf("dense/kernel"), "dense/1": Leaf("dense/bias")}


def through_h5(optimizer, folder):
    """A .keras file of a model that was loaded from .h5: Keras 3.15 loses the optimizer."""
    quietly(dense(optimizer).save, folder / "before.h5")
    model = quietly(keras.models.load_model, folder / "before.h5")
    model.save(folder / "run.keras")
    return folder / "run.keras"


def after_h5(optimizer, folder):
    """A .keras file of a model that was saved as .h5 first: Keras 3.15 leaves the optimizer out."""
    model = dense(optimizer)
    quietly(model.save, folder / "before.h5")
    model.save(folder / "run.keras")
    return folder / "run.keras"


def unchanged(*contents):
    pass


def rewritten(file, change):
    """A .keras file after ``change(config, weights)``."""
    with zipfile.ZipFile(file) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    config = json.loads(contents["config.json"])
    weights = file.with_name("weights")
    weights.write_bytes(contents["model.weights.h5"])
    with h5py.File(weights, "r+") as f:
        change(config, f)
    contents |= {"config.json": json.dumps(config), "model.weights.h5": weights.read_bytes()}
    weights.unlink()
    with zipfile.ZipFile(file, "w") as new:
        for name, x in contents.items():
            new.writestr(name, x)
    return file


def keras_file(folder, change=unchanged, **options):
    dense(keras.optimizers.RMSprop(**options)).save(folder / "run.keras")
    return rewritten(folder / "run.keras", change)


def tf_keras_file(folder, optimizer=None):
    optimizer = optimizer or tf_keras.optimizers.RMSprop()
    dense(optimizer, tf_keras).save(folder / "run.keras")
    return folder / "run.keras"


def h5_file(folder, change=unchanged, framework=keras, optimizer=None, **options):
    optimizer = optimizer or framework.optimizers.RMSprop(**options)
    quietly(dense(optimizer, framework).save, folder / "run.h5")
    with h5py.File(folder / "run.h5", "r+") as file:
        change(file)
    return folder / "run.h5"


def weights_file(folder, optimizer=None, **options):
    dense(optimizer or keras.optimizers.RMSprop(**options)).save_weights(folder / "run.weights.h5")
    return folder / "run.weights.h5"


def prefix(folder, optimizer=None):
    optimizer = optimizer or tf_keras.optimizers.legacy.RMSprop()
    dense(optimizer, tf_keras).save_weights(str(folder / "run"))
    return str(folder / "run")


def saved_model(folder):
    optimizer = tf_keras.optimizers.legacy.RMSprop()
    dense(optimizer, tf_keras).save(folder / "run", save_format="tf")
    return folder / "run"


def cut(file):
    file.write_bytes(file.read_bytes()[:-500])
    return file


def not_a_number(file):
    [name] = [n for n in file["optimizer_weights"].attrs["weight_names"] if "bias_velocity" in n]
    file[f"optimizer_weights/{name}"][0] = np.nan


def without_bias_momentum(file):
    names = file["optimizer_weights"].attrs["weight_names"]
    file["optimizer_weights"].attrs["weight_names"] = [n for n in names if "bias_mom" not in n]


def without_bias_velocity(file):
    [name] = [n for n in file["optimizer_weights"].attrs["weight_names"] if "bias_velocity" in n]
    del file[f"optimizer_weights/{name}"]


def without_bias(file):
    del file["model_weights/dense/net/dense/bias"]


def another_zip(folder):
    with zipfile.ZipFile(folder / "run.keras", "w") as file:
        file.writestr("data.pkl", b"")
    return folder / "run.keras"


def renamed_average(file):
    names = file["optimizer_weights"].attrs["weight_names"]
    file["optimizer_weights"].attrs["weight_names"] = [n.replace("bias", "other") for n in names]


def without_compile_config(config, weights):
    del config["compile_config"]


def without_optimizer(config, weights):
    del config["compile_config"]["optimizer"]


def one_array_less(config, weights):
    del weights[f"optimizer/vars/{len(weights['optimizer/vars']) - 1}"]


def adam():
    return keras.optimizers.Adam()


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop())


def scheduled(framework=keras):
    return framework.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)


def unbuilt(optimizer, framework):
    model = framework.Sequential([framework.Input((3,)), framework.layers.Dense(2)])
    model.compile(optimizer, "mse")
    return model


LEGACY = tf_keras.optimizers.legacy
REJECTED = {
    "Adam": (lambda _: dense(adam()), "not a keras.optimizers.RMSprop.*Adam"),
    "Adam, .h5, .keras": (lambda folder: through_h5(adam(), folder), "trained with Adam"),
    "lost by Keras": (
        lambda folder: through_h5(keras.optimizers.RMSprop(), folder),
        "could not load all of it: Skipping variable",
    ),
    "Adam, .h5 and .keras": (lambda folder: after_h5(adam(), folder), "names no optimizer"),
    "RMSprop, .h5 and .keras": (
        lambda folder: after_h5(keras.optimizers.RMSprop(rho=0.5), folder),
        "names no optimizer.*pass that .h5",
    ),
    "Adam, .h5": (lambda folder: h5_file(folder, optimizer=adam()), "trained with Adam"),
    "Adam, .weights.h5": (lambda folder: weights_file(folder, adam()), "optimizer is 'adam"),
    "legacy Adam": (lambda folder: prefix(folder, LEGACY.Adam()), "slots are.*'m', 'v'"),
    "SGD": (lambda folder: prefix(folder, LEGACY.SGD(momentum=0.9)), r"slots are \['momentum'\]"),
    "scaled, .weights.h5": (lambda folder: weights_file(folder, scaled()), "live model"),
    "not compiled": (
        lambda folder: keras_file(folder, without_compile_config),
        "names no optimizer",
    ),
    "no optimizer": (lambda folder: keras_file(folder, without_optimizer), "names no optimizer"),
    "one array less": (
        lambda folder: keras_file(folder, one_array_less),
        "could not load all of it: Skipping variable",
    ),
    "one array less, tf_keras": (
        lambda folder: rewritten(tf_keras_file(folder), one_array_less),
        "has 2 optimizer arrays, but the RMSprop in its configuration has 3",
    ),
    "legacy .keras": (
        lambda folder: tf_keras_file(folder, LEGACY.RMSprop()),
        "no optimizer state, only the model's",
    ),
    "cut .keras": (lambda folder: cut(keras_file(folder)), "damaged"),
    "cut .h5": (lambda folder: cut(h5_file(folder)), "not a complete HDF5 file"),
    "a text": (
        lambda folder: cut(h5_file(folder)).write_text("a") and folder / "run.h5",
        "damaged",
    ),
    "NaN": (lambda folder: h5_file(folder, not_a_number), "net/dense/bias: velocity must be fin"),
    "slot missing": (
        lambda folder: h5_file(folder, without_bias_momentum, momentum=0.9),
        "net/dense/bias has no momentum",
    ),
    "array missing": (
        lambda folder: h5_file(folder, without_bias_velocity),
        "incomplete.*bias_velocity",
    ),
    "weight missing": (lambda folder: h5_file(folder, without_bias), "incomplete.*dense/bias"),
    "another zip": (another_zip, r"not a \.keras file, but a zip of \['data.pkl'\]"),
    "slot too many": (
        lambda folder: h5_file(folder, renamed_average),
        "other.*none of the weights",
    ),
    "constraint": (
        lambda folder: h5_file(
            folder,
            lambda file: file.attrs.modify(
                "model_config",
                file.attrs["model_config"].replace(
                    '"kernel_constraint": null', '"kernel_constraint": {"class_name": "NonNeg"}'
                ),
            ),
        ),
        "dense has a kernel_constraint",
    ),
    "schedule, .h5": (
        lambda folder: h5_file(folder, learning_rate=scheduled()),
        "ExponentialDecay: pass learning_rate=",
    ),
    "weights of tf_keras": (
        lambda folder: (
            dense(LEGACY.RMSprop(), tf_keras).save_weights(folder / "a.weights.h5")
            or folder / "a.weights.h5"
        ),
        "no optimizer state",
    ),
    "weights of tf_keras, .h5": (
        lambda folder: (
            dense(LEGACY.RMSprop(), tf_keras).save_weights(folder / "a.h5") or folder / "a.h5"
        ),
        "no optimizer state",
    ),
    ".index": (lambda folder: f"{prefix(folder)}.index", "pass its prefix"),
    "folder": (lambda folder: folder, "is a folder"),
    "SavedModel": (saved_model, "pass .*variables/variables"),
    "TensorFlow 2.11": (
        lambda folder: prefix(folder, tf_keras.optimizers.RMSprop()),
        r"2\.11 or later",
    ),
    "schedule, TensorFlow 2": (
        lambda folder: prefix(folder, LEGACY.RMSprop(scheduled(tf_keras))),
        "learning_rate must be given",
    ),
    "only the optimizer of tf_keras": (
        lambda _: dense(tf_keras.optimizers.RMSprop(), tf_keras).optimizer,
        "pass the model",
    ),
    "tf_keras before a step": (
        lambda _: unbuilt(LEGACY.RMSprop(), tf_keras),
        "no state yet: take one step",
    ),
    "model that is not compiled": (
        lambda _: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
        "no optimizer",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_bad_input_is_rejected(case, tmp_path):
    make, message = REJECTED[case]
    source = make(tmp_path)
    mapping = DENSE_NUMBERS if str(source).endswith(".weights.h5") else None
    with pytest.raises(ValueError, match=rf"(?s){message}") as error:
        interop.keras.load(source, DENSE, mapping)
    if isinstance(source, str | os.PathLike):
        assert os.fspath(source) in str(error.value)


def test_missing_files(tmp_path):
    for name in ("run.keras", "run.h5", "run.weights.h5"):
        with pytest.raises(FileNotFoundError):
            interop.keras.load(tmp_path / name, DENSE)
    with pytest.raises(ValueError, match="not a complete TensorFlow checkpoint"):
        interop.keras.load(tmp_path / "run", DENSE)


def test_custom_layers_need_a_loaded_model(tmp_path):
    class Own(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((3,)), Own(2, name="dense")], name="net")
    model.compile(keras.optimizers.RMSprop(), keras.losses.MeanSquaredError())
    model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
    model.save(tmp_path / "run.keras")
    with pytest.raises(ValueError, match=r"run\.keras: Keras could not load it.*pass the model"):
        interop.keras.load(tmp_path / "run.keras", DENSE)
    model = keras.models.load_model(tmp_path / "run.keras", custom_objects={"Own": Own})
    assert interop.keras.load(model, DENSE).step == 1


def test_warnings_of_keras_are_errors(tmp_path, monkeypatch):
    file, load_model = keras_file(tmp_path), keras.saving.load_model

    def load_with_warning(path):
        model = load_model(path)
        warnings.warn("Skipping variable loading for optimizer 'rmsprop'", stacklevel=2)
        return model

    monkeypatch.setattr(keras.saving, "load_model", load_with_warning)
    with pytest.raises(ValueError, match="could not load all of it: Skipping variable"):
        interop.keras.load(file, DENSE)


LIVE = {
    "keras": lambda rate: (keras, keras.optimizers.RMSprop(rate)),
    "tf_keras": lambda rate: (tf_keras, tf_keras.optimizers.RMSprop(rate)),
    "legacy": lambda rate: (tf_keras, LEGACY.RMSprop(rate)),
}


@pytest.mark.parametrize("kind", LIVE)
def test_schedule_of_a_live_optimizer(kind):
    framework, optimizer = LIVE[kind](scheduled(keras if kind == "keras" else tf_keras))
    model = dense(optimizer, framework)
    with pytest.warns(
        UserWarning, match=r"ExponentialDecay.*step 1, 0\.05.*learning_rate="
    ) as seen:
        restored = interop.keras.load(model, DENSE)
    assert [w.filename for w in seen if "ExponentialDecay" in str(w.message)] == [__file__]
    assert restored.hyperparameters[0]["learning_rate"] == pytest.approx(0.05)
    schedule = optax.exponential_decay(0.1, 1, 0.5)
    restored = interop.keras.load(model, DENSE, learning_rate=schedule)
    assert interop.keras.save(model, restored.params, restored.state) is model
    with pytest.raises(ValueError, match="ExponentialDecay: pass"):
        interop.keras.load(model, DENSE, learning_rate=scheduled(framework))


def test_the_rate_decays_as_in_tf_keras(tmp_path):
    optimizer = LEGACY.RMSprop(0.01, epsilon=1e-3, decay=0.5, clipnorm=0.1)
    model = train(network(tf_keras, optimizer))
    file = LegacyH5().write(model, tmp_path)
    restored = interop.keras.load(file, like())
    assert restored.hyperparameters[0]["decay"] == 0.5
    params, state = train_jax(restored)
    assert_same(leaves(params), contents_in_legacy(train(model))["value"], rtol=2e-4, atol=2e-5)
    interop.keras.save(file, params, state)
    assert interop.keras.load(file, like()).step == 6
    by_hand = interop.keras.load(model, like(), decay=0.0)
    interop.keras.save(model, by_hand.params, by_hand.state, step=7)


def test_the_optimizer_inside_loss_scaling_is_found(tmp_path):
    model = dense(scaled())
    model.save(tmp_path / "run.keras")
    for source in (model, model.optimizer, tmp_path / "run.keras"):
        restored = interop.keras.load(source, DENSE)
        inner = model.optimizer.inner_optimizer
        velocity = fields_of(restored.state)["nu"]["dense/kernel"]
        np.testing.assert_array_equal(velocity, inner.variables[2].numpy())
        assert restored.step == 1
        interop.keras.save(source, restored.params, restored.state, step=5)
        assert interop.keras.load(source, DENSE).step == 5
        inner.iterations.assign(1)


def test_a_live_model_of_tf_keras_is_assigned():
    model = dense(tf_keras.optimizers.RMSprop(), tf_keras)
    restored = interop.keras.load(model, DENSE)
    interop.keras.save(
        model, {"dense": jax.tree.map(jnp.ones_like, DENSE["dense"])}, restored.state, step=2
    )
    np.testing.assert_array_equal(model.trainable_variables[0].numpy(), np.ones((3, 2)))


def test_tensorflow_names_variables_in_two_ways(tmp_path):
    path = prefix(tmp_path)
    by_name = interop.keras.load(path, DENSE)
    mapping = {f"layer_with_weights-0/{kind}": Leaf(f"dense/{kind}") for kind in ("kernel", "bias")}
    by_path = interop.keras.load(path, DENSE, mapping)
    assert_same(leaves(by_path.params), leaves(by_name.params), rtol=0)


def test_an_average_belongs_to_the_weight_of_the_longest_name():
    weights = {"dense/kernel": "", "inner/dense/kernel": ""}
    for key, legacy in (
        ("RMSprop/inner/dense/kernel/rms:0", True),
        ("RMSprop/velocity/inner/dense/kernel:0", False),
    ):
        owner = _keras_hdf5._owner(key, weights, is_keras_3=False, legacy=legacy)
        assert owner == ("inner/dense/kernel", "rms" if legacy else "velocity")
    with pytest.raises(ValueError, match="any of"):
        _keras_hdf5._owner("a/b_c_d_velocity", {"b/c_d": "", "b_c/d": ""}, True, False)


def test_everything_else_in_a_checkpoint_is_kept(tmp_path):
    model = dense(LEGACY.RMSprop(), tf_keras)
    others = {"note": tf.Variable(b"zero at its end\0"), "counts": tf.Variable([1, 2])}
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, **others)
    path = checkpoint.save(str(tmp_path / "run"))
    before = tf.train.load_checkpoint(path)
    old = {key: before.get_tensor(key) for key in before.get_variable_to_shape_map()}
    restored = interop.keras.load(path, DENSE)
    interop.keras.save(path, restored.params, restored.state, step=8)
    after = tf.train.load_checkpoint(path)
    for key, x in old.items():
        expected = 8 if "optimizer/iter" in key else x
        found = after.get_tensor(key)
        # NumPy ignores trailing zeros when it compares bytes.
        same = found == x if isinstance(x, bytes) else np.array_equal(found, expected)
        assert same, key


# The order of a .weights.h5 file's numbers.


def layers_model(*layers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers], name="net")
    model.compile(keras.optimizers.RMSprop(0.01), keras.losses.MeanSquaredError())
    width = model.output_shape[-1]
    model.train_on_batch(np.ones((4, 3)) * np.arange(3), np.zeros((4, width)))
    for i, v in enumerate(model.optimizer.variables[2:]):
        v.assign(np.full(v.shape, i + 1.0))
    return model


def numbers_in(state):
    return {path: x.flat[0] for path, x in fields_of(state)["nu"].items()}


def test_layers_of_a_class_are_in_the_order_of_their_numbers(tmp_path):
    """Twelve of the same shape: in the file, "dense_10" comes before "dense_2"."""
    model = layers_model(*(keras.layers.Dense(3, name=f"x{11 - i}") for i in range(12)))
    model.save_weights(tmp_path / "run.weights.h5")
    params = tree({"/".join(v.path.split("/")[-2:]): v.numpy() for v in model.trainable_variables})
    mapping = {
        f"x{i}/{k}": Leaf(f"x{i}/{kind}")
        for i in range(12)
        for k, kind in enumerate(("kernel", "bias"))
    }
    restored = interop.keras.load(tmp_path / "run.weights.h5", params, mapping)
    expected = {f"x{11 - i // 2}/{('kernel', 'bias')[i % 2]}": i + 1.0 for i in range(24)}
    assert numbers_in(restored.state) == expected


def test_an_order_that_is_not_certain_asks_for_names(tmp_path):
    norm = keras.layers.LayerNormalization
    model = layers_model(keras.layers.BatchNormalization(name="x"), norm(name="a"))
    file = tmp_path / "run.weights.h5"
    model.save_weights(file)
    kinds = {"x": ("gamma", "beta"), "a": ("gamma", "beta")}
    params = {layer: dict.fromkeys(kinds[layer], jnp.zeros(3)) for layer in kinds}
    mapping = {f"{n}/{i}": Leaf(f"{n}/{k}") for n in kinds for i, k in enumerate(kinds[n])}
    with pytest.raises(ValueError, match=r"run\.weights\.h5.*order is not certain.*names="):
        interop.keras.load(file, params, mapping)
    names = [v.path for v in model.trainable_variables]
    restored = interop.keras.load(file, params, names=names)
    expected = {"x/gamma": 1, "x/beta": 2, "a/gamma": 3, "a/beta": 4}
    assert numbers_in(restored.state) == expected
    interop.keras.save(file, restored.params, restored.state, names=names, step=3)
    model.load_weights(file)
    assert model.optimizer.iterations.numpy() == 3
    for wrong, message in (
        (["y/gamma", *names[1:]], "no layer for 'y/gamma'"),
        ([names[0], *names], "names must not repeat a name"),
        ([*names[:2], "x/mean", "x/variance", "x/other"], "x has no variable left for 'x/other'"),
        (names[:2], "its optimizer has 6 arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.keras.load(file, params, names=wrong)
    with pytest.raises(ValueError, match="names: only a"):
        interop.keras.load(model, params, names=names)


def test_nested_layers_have_the_names_of_both(tmp_path):
    x = keras.Input((3, 4))
    y = keras.layers.MultiHeadAttention(2, 2, name="att")(x, x)
    y = keras.layers.Dense(3, name="mid")(y)
    inner = [
        keras.Input((3, 3)),
        keras.layers.Dense(3, name="x"),
        keras.layers.Dense(3, name="mid"),
    ]
    y = keras.layers.Dropout(0.1)(keras.Sequential(inner, name="inner")(y))
    model = keras.Model(x, y, name="outer")
    model.compile(keras.optimizers.RMSprop(momentum=0.9), keras.losses.MeanSquaredError())
    model.train_on_batch(np.ones((2, 3, 4)), np.ones((2, 3, 3)))
    model.save_weights(tmp_path / "run.weights.h5")
    quietly(model.save, tmp_path / "run.h5")
    params = {v.path: jnp.zeros(v.shape) for v in model.trainable_variables}
    mapping = {path: Leaf((path,)) for path in params}
    live = interop.keras.load(model, params, mapping)
    given = {"names": [*params], "momentum": 0.9}
    for file, options in (("run.weights.h5", given), ("run.h5", {})):
        restored = interop.keras.load(tmp_path / file, params, mapping, **options)
        jax.tree.map(np.testing.assert_array_equal, restored.params, live.params)
        jax.tree.map(np.testing.assert_array_equal, restored.state, live.state)


def test_hyperparameters_must_fit_the_weights_file(tmp_path):
    file = weights_file(tmp_path, momentum=0.9)
    restored = interop.keras.load(file, DENSE, DENSE_NUMBERS, momentum=0.9)
    assert restored.hyperparameters[0]["learning_rate"] == pytest.approx(0.001)
    for options in ({}, {"momentum": 0.9, "centered": True}):
        with pytest.raises(ValueError, match=r"6 arrays.*check momentum and centered"):
            interop.keras.load(file, DENSE, DENSE_NUMBERS, **options)
    file = weights_file(tmp_path, learning_rate=scheduled())
    with pytest.raises(ValueError, match="learning_rate must be given"):
        interop.keras.load(file, DENSE, DENSE_NUMBERS)
    interop.keras.load(file, DENSE, DENSE_NUMBERS, learning_rate=0.1)


def test_missing_averages_begin_anew(tmp_path):
    params = DENSE | {"head": {"kernel": jnp.ones((2, 2))}}
    for file in (h5_file(tmp_path), keras_file(tmp_path), prefix(tmp_path)):
        restored = interop.keras.load(file, params, missing="fresh")
        assert restored.fresh == ("head/kernel",)
        np.testing.assert_array_equal(restored.params["head"]["kernel"], 1.0)


# Writing.


@pytest.mark.parametrize("kind", LIVE)
def test_a_live_model_is_untouched_by_a_bad_step(kind):
    framework, optimizer = LIVE[kind](0.01)
    model = dense(optimizer, framework)
    restored = interop.keras.load(model, DENSE)
    before = [v.numpy() for v in model.variables]
    changed = jax.tree.map(lambda w: w + 1, restored.params)
    with pytest.raises(ValueError, match="step must be at most"):
        interop.keras.save(model, changed, restored.state, step=2**63)
    changed["dense"]["bias"] = jnp.array([0.0, jnp.nan])
    with pytest.raises(ValueError, match="dense/bias must be finite"):
        interop.keras.save(model, changed, restored.state, step=2)
    for v, x in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), x)


FILES = {
    ".keras": (keras_file, None, {}),
    ".h5": (h5_file, None, {}),
    ".weights.h5": (weights_file, DENSE_NUMBERS, {}),
    "TensorFlow 2": (prefix, None, {}),
}


def full_disk(*args, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("at_the_end", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_a_full_disk_leaves_the_old_file(kind, at_the_end, tmp_path, monkeypatch):
    make, mapping, options = FILES[kind]
    source = make(tmp_path)
    restored = interop.keras.load(source, DENSE, mapping, **options)
    files = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    writers = {
        ".keras": (zipfile.ZipFile, "open"),
        ".h5": (h5py.Dataset, "__setitem__"),
        ".weights.h5": (h5py.Dataset, "__setitem__"),
        "TensorFlow 2": (tf.raw_ops, "SaveV2"),
    }
    owner, method = (os, "replace") if at_the_end else writers[kind]
    write = getattr(owner, method)

    def write_in_part(*args, **options):
        if owner is zipfile.ZipFile and "w" not in args[1:]:
            return write(*args, **options)
        return full_disk()

    monkeypatch.setattr(owner, method, write_in_part)
    with pytest.raises(OSError, match=r"could not be written and is unchanged.*No space"):
        interop.keras.save(source, restored.params, restored.state, mapping, step=3)
    monkeypatch.undo()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == files


@pytest.mark.parametrize("kind", FILES)
def test_mode_and_links_are_kept(kind, tmp_path):
    make, mapping, options = FILES[kind]
    (tmp_path / "real").mkdir()
    source = make(tmp_path / "real")
    [file, *_] = sorted((tmp_path / "real").glob("*.index")) or [source]
    file.chmod(0o640)
    # The target of a link need not have Keras's suffix.
    target = file if kind == "TensorFlow 2" else file.rename(file.with_name("bytes"))
    link = tmp_path / file.name
    link.symlink_to(target)
    for data in (tmp_path / "real").glob("*.data-*"):
        (tmp_path / data.name).symlink_to(data)
    path = tmp_path / os.path.basename(source)
    restored = interop.keras.load(path, DENSE, mapping, **options)
    interop.keras.save(path, restored.params, restored.state, mapping, step=3)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert interop.keras.load(path, DENSE, mapping, **options).step == 3


def test_buffers_for_an_optimizer_alone_are_rejected():
    model = dense(keras.optimizers.RMSprop())
    restored = interop.keras.load(model.optimizer, DENSE)
    with pytest.raises(ValueError, match="buffers: the target has none; pass the model"):
        interop.keras.save(
            model.optimizer, restored.params, restored.state, step=1, buffers={"bn": {"mean": 0.0}}
        )


def test_each_rule_gets_its_dialect(tmp_path):
    """Without momentum, the legacy rule adds eps outside the root, the newer one inside."""
    gradient = jax.tree.map(lambda w: jnp.full_like(w, 1e-4), DENSE)
    for optimizer, dialect in (
        (LEGACY.RMSprop(), dialects.tf_keras()),
        (tf_keras.optimizers.RMSprop(), dialects.keras()),
    ):
        restored = interop.keras.load(dense(optimizer, tf_keras), DENSE)
        found, _ = restored.optimizer.update(gradient, restored.state, restored.params)
        expected, _ = dialect.update(gradient, restored.state, restored.params)
        assert_same(leaves(found), leaves(expected), rtol=1e-5)
