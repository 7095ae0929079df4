"""Every example as users run it, and its result; benchmarks on little data.

`examples/quickstart.py` is tested in tests/packaging: it is README's first command.
"""

import re

import pytest
from support.scripts import printed


@pytest.fixture
def result(request, tmp_path):
    """The output of the example that the test is named after; it must have drawn its picture."""
    name = request.node.name.removeprefix("test_")
    text = printed(f"examples/{name}.py", "--output", f"{name}.png", cwd=tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    return text


def numbers(pattern, text):
    return [float(number) for number in re.search(pattern, text).groups()]


def test_dqn_cartpole(result):
    [median] = numbers(r"median over 5 seeds .* 20 episodes: (\S+);", result)
    assert median >= 400


def test_char_rnn(result):
    bits, ngram = numbers(r"char_rnn: (\S+) bits .* best n-gram (\S+),", result)
    [lzma] = numbers(r"lzma: (\S+),", result)
    assert bits + 0.05 < ngram
    assert lzma < bits  # it learns as it goes


def test_wgan(result):
    ours, gaussian = numbers(r"distance (\S+) to .* Gaussian's (\S+),", result)
    assert ours < gaussian / 2


def test_train_distributed(result):
    [accuracy] = numbers(r"accuracy ([0-9.]+)%", result)
    [held] = numbers(r" ([0-9]+) bytes of state", result)
    assert accuracy >= 95
    # An eighth of 8 bytes per parameter, and at most one per cent of scalars.
    assert 304_144 < held < 1.01 * 304_144


def test_dialects(result):
    keras, optax = numbers(r"Keras (\S+), Optax (\S+),", result)
    assert 0.9 < keras / optax < 1.1


def test_which_rmsprop(result):
    early, later = numbers(r"inside, 1e-8 .* at .g. = (\S+), later (\S+)", result)
    assert early == pytest.approx(later, rel=0.2) == pytest.approx(6e-5, rel=0.2)
    early, later = numbers(r"v from 1 .* at .g. = (\S+), later (\S+)", result)
    assert early > 1e4 * later


def test_resume_from_torch(result):
    [difference] = numbers(r"largest relative difference of a step ([^,]+),", result)
    [accuracy] = numbers(r"held-out accuracy (\S+)%", result)
    assert difference <= 1e-4
    assert accuracy > 95


def test_resume_from_a_checkpoint_of_torch(tmp_path):
    """Two commands: torch saves, and JAX continues from its file."""
    printed("examples/train_in_torch.py", "run.pt", "--steps", "20", cwd=tmp_path)
    arguments = ("run.pt", "--steps", "5", "--output", "picture.png")
    result = printed("examples/resume_from_torch.py", *arguments, cwd=tmp_path)
    [difference] = numbers(r"after 5 resumed steps.*of a step ([^,]+),", result)
    assert difference <= 1e-4


SMALL = {
    "step": ["--log2-size", "16", "--rounds", "2", "--leaves", "2"],
    "gpu": ["--log2-size", "16", "--rounds", "2", "--leaves", "2"],
    "arithmetic": [],
    "atlas": [],
    "compile": ["--leaves", "4"],
    "accumulators": [
        *("--epochs", "1", "--seeds", "1", "--decays", "0.9", "--output", "picture.png")
    ],
    "training": [
        *("--epochs", "1", "1", "--seeds", "1", "--tasks", "digits", "--output", "picture.png")
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_on_little_data(name, tmp_path):
    """Too small for meaningful figures: it must run, print its table and draw."""
    text = printed(f"benchmarks/{name}.py", *SMALL[name], cwd=tmp_path, optimized=False)
    assert re.search(r"^\|.*\d", text, re.MULTILINE)
    if "--output" in SMALL[name]:
        assert (tmp_path / "picture.png").stat().st_size > 10_000
