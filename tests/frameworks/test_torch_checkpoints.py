"""Files that torch, safetensors, timm and others wrote, and the mapping of a live module."""

import os
import stat
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from support.modules import module_alone

from rmsprop_jax import dialects, interop
from rmsprop_jax.interop import Leaf

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)


class Network(torch.nn.Module):
    """The kinds of layer that `mapping_of` knows, and a flattened image."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding="same")
        self.norm = torch.nn.BatchNorm2d(4)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4 * 4 * 4, 5), torch.nn.Linear(5, 5)])
        self.output = torch.nn.Linear(5, 3)

    def forward(self, images):
        x = torch.nn.functional.max_pool2d(torch.tanh(self.norm(self.first(images))), 2)
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.output(x)


class Flax(nnx.Module):
    """The same network in Flax."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(64, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)])
        self.output = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(jnp.tanh(self.norm(self.first(images))), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.output(x)


def trained(optimizer_class=torch.optim.RMSprop, steps=3, **options):
    torch.manual_seed(0)
    model = Network()
    optimizer = optimizer_class(model.parameters(), 1e-2, **options)
    train(model, optimizer, steps)
    return model, optimizer


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).square().sum().backward()
        optimizer.step()


def params_of(model=None):
    return nnx.state(model or Flax(nnx.Rngs(0)), nnx.Param)


def assert_restored(restored, model, optimizer):
    """Every value and average is where the mapping says."""
    mapping = interop.pytorch.mapping_of(model)
    squares = optax.tree_utils.tree_get(restored.state, "nu")
    for name, w in model.named_parameters():
        leaf, square = mapping[name], optimizer.state[w]["square_avg"]
        for tree, expected in ((restored.params, w), (squares, square)):
            [found] = [
                x
                for path, x in jax.tree.leaves_with_path(nnx.to_pure_dict(tree))
                if jax.tree_util.keystr(path, simple=True, separator="/") == leaf.path
            ]
            expected = expected.detach().numpy()
            np.testing.assert_array_equal(found, leaf.to_jax(expected, found.shape))


# Files.


@pytest.fixture
def pair(tmp_path):
    """`model.safetensors` and `optimizer.pt`, as transformers writes them into a folder."""
    model, optimizer = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    return model, optimizer, tmp_path


def test_a_pair_of_files_and_their_folder(pair):
    model, optimizer, folder = pair
    mapping = interop.pytorch.mapping_of(model)
    # A mapping of the live module is in its order; the file is not.
    assert [*load_file(folder / "model.safetensors")] != [*model.state_dict()]
    for source in ((folder / "model.safetensors", folder / "optimizer.pt"), folder, str(folder)):
        restored = interop.pytorch.load(source, params_of(), mapping)
        assert_restored(restored, model, optimizer)
        assert restored.step == 3


def test_a_pair_is_written_back(pair):
    model, optimizer, folder = pair
    mapping = interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(folder, params_of(), mapping)
    changed = jax.tree.map(lambda w: w + 1, restored.params)
    interop.pytorch.save(folder, changed, restored.state, mapping, step=9)
    assert sorted(os.listdir(folder)) == ["model.safetensors", "optimizer.pt"]
    saved = load_file(folder / "model.safetensors")
    torch.testing.assert_close(saved["output.bias"], model.output.bias + 1)
    torch.testing.assert_close(saved["norm.running_mean"], model.norm.running_mean)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    assert optimizer.state[model.output.bias]["step"] == 9


def test_a_pair_is_the_first_files_model_and_the_seconds_optimizer(pair):
    model, optimizer, folder = pair
    mapping = interop.pytorch.mapping_of(model)
    other, its_optimizer = trained(steps=5)
    files = folder / "a.pt", folder / "b.pt"
    for file, m, o in zip(files, (model, other), (its_optimizer, optimizer), strict=True):
        torch.save({"model": m.state_dict(), "optimizer": o.state_dict()}, file)
    restored = interop.pytorch.load(files, params_of(), mapping)
    assert_restored(restored, model, optimizer)
    assert restored.step == 3
    # A model in the second file is not read.
    restored = interop.pytorch.load((folder / "model.safetensors", files[1]), params_of(), mapping)
    assert_restored(restored, model, optimizer)
    with pytest.raises(ValueError, match=r"is .*a\.pt twice"):
        interop.pytorch.load((files[0], files[0]), params_of(), mapping)
    with pytest.raises(ValueError, match=r"a\.pt, .*b\.pt: "):
        interop.pytorch.load(files, {"x": jnp.zeros(1)}, {})


def test_sorted_files_without_the_module_ask_for_names(tmp_path):
    """Layers of the same shape in a Sequential: in the file, 10 comes before 2."""
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(11)))
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for i, w in enumerate(model.parameters()):
        optimizer.state[w]["square_avg"].fill_(i)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    mapping = interop.pytorch.mapping_of(model)
    params = {str(i): {"kernel": jnp.zeros((2, 2))} for i in range(11)}
    with pytest.raises(ValueError, match="names="):
        interop.pytorch.load(tmp_path, params, dict(sorted(mapping.items())))
    names = [name for name, _ in model.named_parameters()]
    for options in (
        {"mapping": mapping},
        {"mapping": dict(sorted(mapping.items())), "names": names},
    ):
        restored = interop.pytorch.load(tmp_path, params, **options)
        squares = optax.tree_utils.tree_get(restored.state, "nu")
        for i in range(11):
            np.testing.assert_array_equal(squares[str(i)]["kernel"], i)


def test_lightnings_file_and_a_compiled_model(tmp_path):
    model, optimizer = trained(momentum=0.9)
    compiled = {f"model._orig_mod.{name}": w for name, w in model.state_dict().items()}
    file = tmp_path / "epoch=1.ckpt"
    content = {"state_dict": compiled, "optimizer_states": [optimizer.state_dict()], "epoch": 1}
    torch.save(content | {"lr_schedulers": [], "callbacks": {}}, file)
    restored = interop.pytorch.load(file, params_of(), interop.pytorch.mapping_of(model))
    assert_restored(restored, model, optimizer)


class Own:
    """An object that can only be read by running code."""


BAD_FILES = {
    "an object": (lambda f: torch.save({"model": {}, "config": Own()}, f), "Own, and reading"),
    "empty": (lambda f: f.write_bytes(b""), "damaged, or was not written by torch.save"),
    "text": (lambda f: f.write_text("weights"), "damaged, or was not written by torch.save"),
    "half": (lambda f: write_half(f), "damaged, or was not written by torch.save"),
    "a tensor": (lambda f: torch.save(torch.ones(2), f), "must be a dictionary"),
    "a whole module": (lambda f: torch.save(torch.nn.Linear(2, 2), f), "linear.Linear"),
}


def write_half(file):
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case, tmp_path):
    make, text = BAD_FILES[case]
    file = tmp_path / "run.pt"
    make(file)
    with pytest.raises(ValueError, match=r"run\.pt") as raised:
        interop.pytorch.load(file, params_of())
    assert text in str(raised.value)
    assert len(str(raised.value)) < 600


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    load, seen = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.append(k) or load(*a, **k))
    model, optimizer = trained()
    file = tmp_path / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    mapping = interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(file, params_of(), mapping)
    interop.pytorch.save(file, restored.params, restored.state, mapping, step=1)
    assert [options["weights_only"] for options in seen] == [True, True]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        interop.pytorch.load(tmp_path / "gone.pt", params_of())
    with pytest.raises(ValueError, match=r"must have one of \['model\.safetensors'"):
        interop.pytorch.load(tmp_path, params_of())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model, optimizer = trained()
    file = tmp_path / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.chmod(0o600)
    before, mapping = file.read_bytes(), interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(file, params_of(), mapping)
    arguments = (restored.params, restored.state, mapping)

    def full(content, path):
        path.write_bytes(b"half")
        # As torch reports a full disk.
        raise RuntimeError("basic_ios::clear: iostream error")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"run\.pt could not be written and is unchanged"):
            interop.pytorch.save(file, *arguments, step=4)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]
    interop.pytorch.save(file, *arguments, step=4)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# Which RMSprop it is.


def test_bitsandbytes_is_rejected():
    rmsprop = pytest.importorskip("bitsandbytes").optim.RMSprop
    group = rmsprop([torch.nn.Parameter(torch.ones(2, 2))], 1e-3).state_dict()["param_groups"][0]
    state = {0: {"step": 1, "state1": torch.ones(2, 2)}}
    source = {
        "model": {"w": torch.ones(2, 2)},
        "optimizer": {"state": state, "param_groups": [group]},
    }
    with pytest.raises(ValueError, match=r"betas|alpha|state1"):
        interop.pytorch.load(source, {"w": jnp.zeros((2, 2))})


TIMM = module_alone("timm.optim.rmsprop_tf").RMSpropTF
TIMM_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "lr_in_momentum": False, "centered": True},
    {"momentum": 0.9, "weight_decay": 0.1, "decoupled_decay": True},
]


@pytest.mark.parametrize("options", TIMM_OPTIONS, ids=str)
def test_timms_run_continues_with_its_rule(options):
    model, optimizer = trained(TIMM, **options)
    source = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    mapping = interop.pytorch.mapping_of(model)
    restored = interop.pytorch.load(source, params_of(), mapping)
    assert restored.hyperparameters[0].keys() >= {"lr_in_momentum", "decoupled_decay"}
    gradients = jax.tree.map(jnp.ones_like, restored.params)
    updates, _ = restored.optimizer.update(gradients, restored.state, restored.params)
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    for w in model.parameters():
        w.grad = torch.ones_like(w)
    optimizer.step()
    moved = {name: (w - before[name]).detach().numpy() for name, w in model.named_parameters()}
    np.testing.assert_allclose(
        updates["output"]["bias"].get_value(), moved["output.bias"], rtol=1e-5
    )


@pytest.mark.parametrize("option", ["caution", "corrected_weight_decay"])
def test_options_of_timm_that_change_the_rule_are_rejected(option):
    model, optimizer = trained(TIMM, **{option: True})
    source = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    with pytest.raises(ValueError, match=rf"param_groups\[0\] has {option}=True"):
        interop.pytorch.load(source, params_of(), interop.pytorch.mapping_of(model))


def test_a_rate_that_is_a_tensor_and_a_capturable_optimizer():
    model, optimizer = trained(capturable=False)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.02])
    optimizer.param_groups[0]["capturable"] = True
    source = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    restored = interop.pytorch.load(source, params_of(), interop.pytorch.mapping_of(model))
    assert restored.hyperparameters[0]["lr"] == pytest.approx(0.02)


def test_a_schedulers_mark_warns():
    model, optimizer = trained()
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    source = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    mapping = interop.pytorch.mapping_of(model)
    with pytest.warns(UserWarning, match="scheduler"):
        interop.pytorch.load(source, params_of(), mapping)
    interop.pytorch.load(source, params_of(), mapping, lr=0.01)


UNREADABLE = {
    "meta": lambda: torch.ones(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e5m2),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_numpy_cannot_hold_are_named(kind):
    model, optimizer = trained()
    state = model.state_dict()
    state["output.bias"] = UNREADABLE[kind]()
    source = {"model": state, "optimizer": optimizer.state_dict()}
    with pytest.raises(TypeError, match=r"output\.bias cannot be read"):
        interop.pytorch.load(source, params_of(), interop.pytorch.mapping_of(model))


# Continuing in Flax.


def test_nnx_optimizer_continues_with_batch_norm():
    """The documented way: `nnx.state`, `nnx.update`, and the state in `nnx.Optimizer`."""
    theirs, optimizer = trained(momentum=0.9, centered=True)
    source = {"model": theirs.state_dict(), "optimizer": optimizer.state_dict()}
    model = Flax(nnx.Rngs(1))
    restored = interop.pytorch.load(
        source, nnx.state(model, nnx.Param), interop.pytorch.mapping_of(theirs)
    )
    nnx.update(model, restored.params)
    statistics = nnx.state(model, nnx.BatchStat)
    nnx.replace_by_pure_dict(statistics, restored.buffers)
    nnx.update(model, statistics)

    theirs.eval()
    model.eval()
    expected = theirs(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-4, atol=1e-4)

    theirs.train()
    model.train()
    ours = nnx.Optimizer(
        model, restored.optimizer._replace(init=lambda _: restored.state), wrt=nnx.Param
    )
    for _ in range(3):
        gradients = nnx.grad(lambda m: jnp.sum(m(IMAGES) ** 2))(model)
        ours.update(model, gradients)
    train(theirs, optimizer, 3)
    np.testing.assert_allclose(
        model.output.kernel.get_value(),
        theirs.output.weight.detach().numpy().T,
        rtol=1e-4,
        atol=1e-5,
    )


# The mapping of a module.


def test_mapping_of_knows_batch_norm_and_the_flattened_image():
    mapping = interop.pytorch.mapping_of(Network())
    assert mapping["norm.running_var"] == Leaf("norm/var")
    assert mapping["norm.weight"] == Leaf("norm/scale")
    assert mapping["layers.0.weight"] == Leaf("layers/0/kernel", (2, 1, 0), (5, 4, 16))
    assert mapping["layers.1.weight"] == Leaf("layers/1/kernel", (1, 0))
    assert not any("num_batches_tracked" in name for name in mapping)


class Permuted(torch.nn.Module):
    """Channels are last before the flattening: torch's order is Flax's, but `fx` cannot tell."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.dense = torch.nn.Linear(4 * 6 * 6, 3)

    def forward(self, images):
        return self.dense(self.conv(images).permute(0, 2, 3, 1).flatten(1))


class Branches(Permuted):
    """A forward that `torch.fx` cannot trace."""

    def forward(self, images):
        x = self.conv(images)
        return self.dense(x.flatten(1)) if x.sum() > 0 else self.dense(-x.flatten(1))


@pytest.mark.parametrize("module", [Permuted, Branches])
def test_mapping_of_says_what_it_cannot_see(module):
    with pytest.warns(UserWarning, match=r"mapping_of cannot see.*'dense'.*reshape="):
        mapping = interop.pytorch.mapping_of(module())
    assert mapping["dense.weight"] == Leaf("dense/kernel", (1, 0))


class Pooled(torch.nn.Module):
    """Only one pixel is left, so that all orders are the same."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.dense = torch.nn.Linear(4, 8)
        self.out = torch.nn.Linear(8, 3)

    def forward(self, images):
        x = torch.nn.functional.adaptive_avg_pool2d(self.conv(images), 1).flatten(1)
        return self.out(torch.relu(self.dense(x)))


def test_mapping_of_is_quiet_where_nothing_is_in_doubt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own.
        compiled = torch.compile(Pooled())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mapping = interop.pytorch.mapping_of(Pooled())
        interop.pytorch.mapping_of(torch.nn.Linear(4, 4))
        assert interop.pytorch.mapping_of(compiled) == mapping
    assert mapping["dense.weight"] == Leaf("dense/kernel", (1, 0))
    assert mapping["out.weight"] == Leaf("out/kernel", (1, 0))


def test_a_dialect_for_stable_baselines3():
    model, optimizer = trained()
    source = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    restored = interop.pytorch.load(
        source, params_of(), interop.pytorch.mapping_of(model), dialect="stable_baselines3"
    )
    expected = dialects.stable_baselines3(**restored.hyperparameters[0])
    gradients = jax.tree.map(jnp.ones_like, restored.params)
    updates = [
        o.update(gradients, restored.state, restored.params)[0]
        for o in (restored.optimizer, expected)
    ]
    jax.tree.map(np.testing.assert_array_equal, *updates)
