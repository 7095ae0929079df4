"""The command-line flags that all examples share, and checks that raise argparse's errors."""

import argparse
from collections.abc import Callable
from pathlib import Path


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """A parser with the flags that every example has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of everything random")
    parser.add_argument(
        "--output", type=picture, default=Path(output), help="where to save the picture"
    )
    return parser


def whole_number(text: str) -> int:
    """A whole number >= 1, or argparse's error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def number_below(limit: float) -> Callable[[str], float]:
    """A parser of numbers >= 0 and < limit."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 <= value < limit:
            raise argparse.ArgumentTypeError(f"must be a number >= 0 and < {limit}, got {text!r}")
        return value

    return parse


def seed(text: str) -> int:
    """A seed that NumPy accepts, or argparse's error."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be >= 0 and < 2**32, got {text!r}")
    return int(text)


def picture(text: str) -> Path:
    """A path that matplotlib can write a picture to."""
    path, allowed = Path(text), (".pdf", ".png", ".svg")
    if path.suffix not in allowed or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must be a file in an existing folder, ending in one of {allowed}, got {text!r}"
        )
    return path
