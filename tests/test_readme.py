"""README: short, its two commands, and what it says of options, names and versions."""

import ast
import inspect
import re

import pytest
from support.pages import PAGES, README, ROOT, command, shell_blocks

import rmsprop_jax
from rmsprop_jax import _storage, dialects


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1500


@pytest.mark.parametrize("word", ["examples/quickstart.py", "pytest"])
def test_each_command_is_one_line_from_nothing(word):
    """.ci/run finds them by this word, and tries them in a copy."""
    steps = command(word).split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1].startswith(".venv/bin/pip install -q -e '.[")
    assert steps[2].startswith(".venv/bin/python ")
    assert len(steps) == 3
    assert len([line for line in README.splitlines() if re.match(f"python3 .*{word}", line)]) == 1


def test_the_first_command_trains_and_the_second_tests():
    first, second = shell_blocks()[:2]
    assert first.endswith("examples/quickstart.py")
    assert second.endswith("-m pytest -q -n auto")


@pytest.mark.parametrize("page", ["README.md", "docs/options.md"])
def test_options_are_those_of_rmsprop(page):
    parameters = inspect.signature(rmsprop_jax.rmsprop).parameters
    table = PAGES[page][PAGES[page].index("| option | default |") :]
    rows = re.findall(r"^\| `(\w+)` \| (\S*) ?\|", table, re.MULTILINE)
    assert [name for name, _ in rows] == list(parameters)
    defaults = [ast.literal_eval(cell) if cell else inspect.Parameter.empty for _, cell in rows]
    assert defaults == [p.default for p in parameters.values()]


def test_the_signature_is_that_of_rmsprop():
    names = ", ".join(inspect.signature(rmsprop_jax.rmsprop).parameters)
    signature = names.replace("weight_decay", "*, weight_decay")
    assert f"`rmsprop({signature})`" in PAGES["docs/options.md"]


def test_every_storage_is_named():
    row = re.search(r"^\| `accumulator_dtype` .*$", PAGES["docs/options.md"], re.MULTILINE)[0]
    assert all(dtype.name in row for dtype in _storage.FORMATS)


def test_every_dialect_is_named():
    assert set(re.findall(r"(?<!/)\bdialects\.(\w+)", README)) == set(dialects.DIALECTS)


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_lower_bounds(page):
    bounds = (ROOT / ".ci" / "lowest.txt").read_text()
    for package, name in {"jax": "JAX and jaxlib", "optax": "Optax", "chex": "chex"}.items():
        lowest = re.search(rf"^{package}==(.+)$", bounds, re.MULTILINE)[1]
        assert re.search(rf"{name} from {re.escape(lowest)}\b", PAGES[page]), name
