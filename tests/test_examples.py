"""Every example is shown where one looks for it. `.ci/run` runs them."""

from pathlib import Path

import matplotlib.image
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "flags")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_is_listed_with_its_picture(script):
    text = (FOLDER / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| [`{script.name}`]"))
    assert len(row.split("|")[2]) > 40
    assert f"]({script.stem}.png)" in text
    height, width, _ = matplotlib.image.imread(FOLDER / f"{script.stem}.png").shape
    assert min(height, width) > 300


def test_nothing_else_is_listed():
    text = (FOLDER / "README.md").read_text()
    assert text.count("| [`") == text.count("![") == len(SCRIPTS)
