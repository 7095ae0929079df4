"""Examples and benchmarks as processes of their own."""

import subprocess
import sys
from pathlib import Path

from support.environment import for_program

ROOT = Path(__file__).parents[2]


def printed(script, *flags, cwd, optimized=True):
    """What a script prints that warns of nothing and takes at most five minutes."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", ROOT / script, *flags],
        cwd=cwd,
        env=for_program(optimized=optimized),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout)
    return ended.stdout
