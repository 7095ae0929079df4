"""The flags of examples/quickstart.py, and one short run."""

import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from support import environment

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


def test_help_explains_every_flag(monkeypatch, capsys):
    quickstart = runpy.run_path(str(QUICKSTART))
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        quickstart["parse_arguments"]()
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in FLAGS)
    assert shown.count("(default: ") == len(FLAGS)


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
    result = subprocess.run(
        [sys.executable, "-W", "error", QUICKSTART, "--epochs", "1", "--diagnose", "30"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment.for_program(optimized=False),
    )
    assert result.returncode == 0, result.stderr
    assert "loss=" in result.stderr
    assert "accuracy=" in result.stderr
    lines = result.stdout.splitlines()
    parts = ("test accuracy", "599 held-out", " s for all", ".png")
    assert all(part in lines[-1] for part in parts)
    memory = [line.rsplit("%, ")[-1] for line in lines[-7:-4]]
    assert memory == [
        f"{held} of state per parameter" for held in ("4 bytes + 4", "2 bytes + 2", "2 bytes + 1")
    ]
    assert matplotlib.image.imread(tmp_path / "quickstart.png").std() > 0.05
    assert [line for line in lines if line.startswith("step ")] == ["step 30"]
    assert sum(line.startswith("hidden/kernel ") for line in lines) == 1
    assert matplotlib.image.imread(tmp_path / "quickstart_step_sizes.png").std() > 0.05
