"""Versions in pyproject.toml and .ci. Tests that need new environments are in tests/packaging."""

import re
import tomllib
from importlib.metadata import version

import pytest
from support.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOWEST = dict(re.findall(r"^(\w+)==(.+)$", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))


def release(text):
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_lower_bounds_are_the_tested_versions():
    bounds = dict(bound.split(">=") for bound in PROJECT["dependencies"])
    assert bounds == LOWEST


@pytest.mark.parametrize("package", LOWEST)
def test_installed_version_is_supported(package):
    assert release(version(package)) >= release(LOWEST[package])
