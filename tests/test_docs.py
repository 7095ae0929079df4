"""README and docs/: links, commands and names exist, and each line to copy makes an optimizer.

Their examples are doctests, collected from the files themselves.
"""

import re
from fnmatch import fnmatch

import jax
import jax.numpy as jnp
import optax
import pytest
from support.pages import PAGES, ROOT, anchors, prose

import rmsprop_jax
from rmsprop_jax import dialects, interop

NAMES = {
    "dialects": dialects,
    "optax": optax,
    "rmsprop": rmsprop_jax.rmsprop,
    "untouched_rows": rmsprop_jax.untouched_rows,
    "lr": 1e-2,
    "wd": 1e-3,
    "mu": 0.9,
}
# Behind "there" in the tables "coming from"; the last column in README.
CELLS = {"README.md": r"\| `([^`]+\))` \|$", "docs/which_rmsprop.md": r"\| `([^`]+\))` \|"}
LINES = [
    (page, code)
    for page, cell in CELLS.items()
    for code in dict.fromkeys(re.findall(cell, PAGES[page], re.MULTILINE))
]


def test_there_are_lines():
    assert len(LINES) > 40


@pytest.mark.parametrize(("page", "code"), LINES, ids=str)
def test_line_makes_an_optimizer(page, code):
    optimizer = eval(code, {"__builtins__": {}}, NAMES)
    params = jnp.ones((3, 2))
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert (updates < 0).all()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(PAGES[page])):
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_files_are_where_it_says(page):
    """Those of tests, benchmarks and examples, whatever is beside them in a command."""
    text = prose(PAGES[page])
    named = set(re.findall(r"(?:tests|benchmarks|examples|notebooks)/[\w/.-]*[\w*]+[\w.]*", text))
    assert {name for name in named if not list(ROOT.glob(name))} == set()


COMMANDS = [
    (page, arguments)
    for page, text in PAGES.items()
    for arguments in re.findall(r"`pytest ([^`]+ -k [^`]+)`", prose(text))
]


def test_there_is_something_to_check():
    everything = prose("\n".join(PAGES.values()))
    assert len(COMMANDS) >= 4
    assert len(re.findall(r"\]\((?!https?:)([^)]+)\)", everything)) > 60
    assert len(re.findall(r"\b(?:tests|benchmarks|examples)/\w", everything)) > 60
    assert len(set(re.findall(r"\binterop\.(\w+)\.(?:load|save)", everything))) >= 2


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=str)
def test_chosen_tests_exist(page, arguments):
    file, _, word = arguments.partition(" -k ")
    names = re.findall(r"def (test_\w+)", (ROOT / file).read_text())
    assert [name for name in names if fnmatch(name, f"*{word}*")]


@pytest.mark.parametrize("page", PAGES)
def test_names_of_dialects_and_formats_exist(page):
    assert set(re.findall(r"(?<!/)\bdialects\.(\w+)", PAGES[page])) <= set(dialects.DIALECTS)
    called = set(re.findall(r"\binterop\.(\w+)\.(?:load|save|mapping_of)", PAGES[page]))
    assert called <= set(interop.FORMATS)


def test_every_dialect_is_explained():
    named = set(re.findall(r"(?<!/)\bdialects\.(\w+)", PAGES["docs/which_rmsprop.md"]))
    assert named == set(dialects.DIALECTS)


def test_every_format_of_a_checkpoint_is_explained():
    named = set(re.findall(r"interop\.(\w+)`", PAGES["docs/checkpoints.md"]))
    named |= set(re.findall(r"interop\.(\w+)\.load", PAGES["docs/checkpoints.md"]))
    assert named & set(interop.FORMATS) == set(interop.FORMATS)


@pytest.mark.parametrize("name", interop.FORMATS)
def test_every_format_is_read_and_written(name):
    for function in (interop.FORMATS[name].load, interop.FORMATS[name].save):
        assert {"Args:", "Returns:", "Raises:"} <= set(function.__doc__.split())
