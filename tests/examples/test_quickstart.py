"""The example's flags, and one short run of it."""

import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"
FLAGS = [
    "--epochs",
    "--batch-size",
    "--learning-rate",
    "--decay",
    "--seed",
    "--output",
    "--diagnose",
]


def run(*flags, cwd=None):
    return subprocess.run(
        [sys.executable, "-W", "error", QUICKSTART, *flags], capture_output=True, text=True, cwd=cwd
    )


def test_help_explains_every_flag():
    result = run("--help")
    assert result.returncode == 0
    assert all(flag in result.stdout for flag in FLAGS)
    assert result.stdout.count("(default: ") == len(FLAGS)


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (["--epochs", "0"], "a whole number >= 1"),
        (["--epochs", "many"], "a whole number >= 1"),
        (["--batch-size", "1199"], "at most 1198"),
        (["--learning-rate", "-1"], "a number >= 0"),
        (["--learning-rate", "nan"], "a number >= 0"),
        (["--decay", "1"], "< 1"),
        (["--diagnose", "0"], "a whole number >= 1"),
        (["--seed", "-1"], ">= 0"),
        (["--output", "no/such/folder.png"], "an existing folder"),
        (["--output", "picture.txt"], ".png"),
    ],
    ids=str,
)
def test_bad_flag_says_what_is_allowed(flags, allowed, monkeypatch, capsys):
    quickstart = runpy.run_path(str(QUICKSTART))
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *flags])
    with pytest.raises(SystemExit, match="2"):
        quickstart["parse_arguments"]()
    message = capsys.readouterr().err.splitlines()[-1]
    assert flags[0] in message
    assert allowed in message


def test_short_run(tmp_path):
    result = run("--epochs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "loss=" in result.stderr
    assert "accuracy=" in result.stderr
    last = result.stdout.splitlines()[-1]
    assert all(part in last for part in ("test accuracy", "599 held-out", " s for all", ".png"))
    picture = matplotlib.image.imread(tmp_path / "quickstart.png")
    assert picture.std() > 0.05


def test_diagnose(tmp_path):
    result = run("--epochs", "2", "--diagnose", "40", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = result.stdout.splitlines()
    assert [line for line in text if line.startswith("step ")] == ["step 40"]
    assert sum(line.startswith("hidden/kernel ") for line in text) == 1
    assert (tmp_path / "quickstart_step_sizes.png").stat().st_size > 10_000
