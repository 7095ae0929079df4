"""README's commands, links and facts. Its examples are doctests, collected from the file itself."""

import ast
import inspect
import re
from fnmatch import fnmatch

import pytest
from support.readme import ROOT, TEXT, command

import rmsprop_jax
from rmsprop_jax import _storage, dialects, interop

# Without code blocks, whose brackets are no links.
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("word", ["examples/quickstart.py", "pytest"])
def test_each_command_is_one_line_from_nothing(word):
    """.ci/run finds them by this word, and tries them in a copy."""
    steps = command(word).split(" && ")
    assert steps[0] == "python3 -m venv .venv"
    assert steps[1].startswith(".venv/bin/pip install -q -e '.[")
    assert steps[2].startswith(".venv/bin/python ")
    assert len(steps) == 3
    assert len([line for line in TEXT.splitlines() if re.match(f"python3 .*{word}", line)]) == 1


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    }
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PROSE)
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert path or anchor in anchors, link


def test_files_are_where_it_says():
    """Those of tests, benchmarks and examples, whatever is beside them in a command."""
    named = set(re.findall(r"(?:tests|benchmarks|examples|notebooks)/[\w/.-]*\w", PROSE))
    assert len(named) > 25
    assert {name for name in named if not (ROOT / name).exists()} == set()


COMMANDS = re.findall(r"`pytest ([^`]+)`", PROSE)


@pytest.mark.parametrize("arguments", [c for c in COMMANDS if " -k " in c])
def test_chosen_tests_exist(arguments):
    file, _, word = arguments.partition(" -k ")
    names = re.findall(r"def (test_\w+)", (ROOT / file).read_text())
    assert [name for name in names if fnmatch(name, f"*{word}*")]


def test_options_are_those_of_rmsprop():
    parameters = inspect.signature(rmsprop_jax.rmsprop).parameters
    table = TEXT[TEXT.index("| option | default |") :]
    rows = re.findall(r"^\| `(\w+)` \| (\S*) ?\|", table, re.MULTILINE)
    assert [name for name, _ in rows] == list(parameters)
    defaults = [ast.literal_eval(cell) if cell else inspect.Parameter.empty for _, cell in rows]
    assert defaults == [p.default for p in parameters.values()]
    signature = ", ".join(parameters).replace("weight_decay", "*, weight_decay")
    assert f"`rmsprop({signature})`" in TEXT


def test_every_storage_is_named():
    row = re.search(r"^\| `accumulator_dtype` .*$", TEXT, re.MULTILINE)[0]
    assert all(dtype.name in row for dtype in _storage.FORMATS)


def test_names_of_dialects_and_formats_exist():
    """A name that README calls is one that there is."""
    assert set(re.findall(r"(?<!/)\bdialects\.(\w+)", TEXT)) <= set(dialects.DIALECTS)
    called = set(re.findall(r"\binterop\.(\w+)\.(?:load|save|mapping_of)", TEXT))
    assert len(called) >= 2
    assert called <= set(interop.FORMATS)


def test_lower_bounds():
    bounds = (ROOT / ".ci" / "lowest.txt").read_text()
    sentence = TEXT[TEXT.index("## Supported versions") :]
    for package, name in {"jax": "JAX and jaxlib", "optax": "Optax", "chex": "chex"}.items():
        lowest = re.search(rf"^{package}==(.+)$", bounds, re.MULTILINE)[1]
        assert re.search(rf"{name} from {re.escape(lowest)}\b", sentence), name
