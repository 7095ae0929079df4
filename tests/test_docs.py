"""Each line of code in docs/ that one would copy makes an optimizer. Its doctests run, too."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from support.readme import ROOT

import rmsprop_jax
from rmsprop_jax import dialects, interop

PAGES = {page.name: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
NAMES = {
    "dialects": dialects,
    "optax": optax,
    "rmsprop": rmsprop_jax.rmsprop,
    "untouched_rows": rmsprop_jax.untouched_rows,
    "lr": 1e-2,
    "wd": 1e-3,
    "mu": 0.9,
}
LINES = [
    (name, code)
    for name, page in PAGES.items()
    for code in dict.fromkeys(re.findall(r"\| `([^`]+\))` \|", page))
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
    links = re.findall(r"\]\(([^)#]+)", PAGES[page])
    assert all((ROOT / "docs" / link).exists() for link in links if "://" not in link)


def test_every_dialect_is_explained():
    named = set(re.findall(r"dialects\.(\w+)", PAGES["which_rmsprop.md"]))
    assert named == set(dialects.DIALECTS)


def test_every_format_of_a_checkpoint_is_explained():
    named = set(re.findall(r"interop\.(\w+)`", PAGES["checkpoints.md"]))
    named |= set(re.findall(r"interop\.(\w+)\.load", PAGES["checkpoints.md"]))
    assert named & set(interop.FORMATS) == set(interop.FORMATS)


@pytest.mark.parametrize("name", interop.FORMATS)
def test_every_format_is_read_and_written(name):
    for function in (interop.FORMATS[name].load, interop.FORMATS[name].save):
        assert {"Args:", "Returns:", "Raises:"} <= set(function.__doc__.split())
