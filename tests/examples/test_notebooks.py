"""The committed notebooks have been run, without warnings, and have their pictures."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|var|mnt|work|content|usr|opt|private|Users)/")


def cells_of(path, kind):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_there_are_five():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_run_from_top_to_bottom(path):
    cells = cells_of(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_went_wrong(path):
    for cell in cells_of(path, "code"):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output
            # Warnings and logs go there.
            assert output.get("name") != "stderr", output
            assert not MACHINE_PATH.search(json.dumps(output)), output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_is_there(path):
    shown = 0
    for cell in cells_of(path, "code"):
        pictures = [
            o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})
        ]
        assert len(pictures) == "".join(cell["source"]).count("plt.show()"), cell["source"]
        shown += len(pictures)
    assert shown >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_is_explained_and_its_message_asserted(path):
    text = "".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    sources = ["".join(cell["source"]) for cell in cells_of(path, "code")]
    drawing = [source for source in sources if "plt.show()" in source]
    assert text.count("**What to see.**") >= len(drawing)
    for source in drawing:
        assert "\nassert " in source or "\n    assert " in source, source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = "".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (FOLDER / link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_took_under_five_minutes(path):
    times = [
        datetime.fromisoformat(time)
        for cell in cells_of(path, "code")
        for time in cell["metadata"]["execution"].values()
    ]
    assert (max(times) - min(times)).total_seconds() < 300


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small(path):
    assert path.stat().st_size < 1_000_000
