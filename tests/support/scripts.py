"""Runs examples and benchmarks in separate processes."""

import subprocess
import sys
from pathlib import Path

from support.environment import for_program

ROOT = Path(__file__).parents[2]


def printed(script, *flags, cwd, optimized=True):
    """The output of a script, which must not warn and may take five minutes."""
    run = subprocess.run(
        [sys.executable, "-W", "error", ROOT / script, *flags],
        cwd=cwd,
        env=for_program(optimized=optimized),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    return run.stdout
