"""README as a text: its commands, and the paths that it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def command(word):
    """The one shell block of README with this word in it, which must be one line."""
    blocks = re.findall(
        r"^```(?:bash|sh|shell|console)\n(.*?)\n```", TEXT, re.MULTILINE | re.DOTALL
    )
    [found] = [block for block in blocks if word in block]
    assert "\n" not in found, found
    return found
