"""Runs `examples/train_distributed.py` in separate processes."""

import re
import subprocess
import sys
import time
from pathlib import Path

from support.environment import for_program

ROOT = Path(__file__).parents[2]
FLAGS = ["--steps", "30", "--checkpoint-every", "10", "--storage", "float8_e5m2"]
STARTED = []
ONE, TWO = ["--devices", "8"], ["--devices", "4", "--processes", "2"]


def command(folder, *flags):
    script = ROOT / "examples" / "train_distributed.py"
    paths = ["--checkpoints", folder / "checkpoints", "--output", folder / "picture.png"]
    # fmt: off
    return [sys.executable, "-W", "error", script, *FLAGS, *paths, *flags]
    # fmt: on


def environment(**more):
    return for_program(optimized=False) | more


def ended(folder, *flags, **more):
    """Waits for a run to end, and returns it."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        command(folder, *flags),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=200,
    )


def finished(folder, *flags, **more):
    """The result and the messages of a run that succeeds."""
    run = ended(folder, *flags, **more)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def rejected(folder, *flags):
    """The messages of a run that does not start, without a traceback."""
    run = ended(folder, *flags)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    return run.stderr


def bits(result):
    """The checksum of the parameters in a result line."""
    return re.search(r"parameters ([0-9a-f]{8})", result).group(1)


def started(folder, *flags, **more):
    """A run in the background, in a session of its own, and the file with its messages."""
    folder.mkdir(exist_ok=True)
    messages = folder / "messages"
    with open(messages, "w") as file:
        run = subprocess.Popen(
            command(folder, *flags),
            env=environment(**more),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    STARTED.append(run)
    return run, messages


def wait_for(condition, run):
    """Waits until the condition holds. The run must not end before that."""
    deadline = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def sealed(folder, step):
    return (folder / "checkpoints" / str(step) / "seal.json").exists()
