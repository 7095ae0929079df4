"""README and the pages of docs/ as text, and the commands and headings in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}


def shell_blocks():
    """The shell blocks of README, in order."""
    return re.findall(
        r"^```(?:bash|sh|shell|console)\n(.*?)\n```", README, re.MULTILINE | re.DOTALL
    )


def command(word):
    """The only shell block of README that contains this word; it must be one line."""
    [found] = [block for block in shell_blocks() if word in block]
    assert "\n" not in found, found
    return found


def prose(text):
    """The text without code blocks, whose brackets are not links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors of the headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
