"""The packages that ours is compared with, if they are installed: torch and bitsandbytes."""

from importlib.metadata import PackageNotFoundError, version

try:
    import torch
except ModuleNotFoundError:
    torch = None
try:
    import bitsandbytes
except ModuleNotFoundError:
    bitsandbytes = None

__all__ = ["bitsandbytes", "torch", "versions"]


def versions() -> str:
    """The versions of all packages, for the head of a table."""
    return ", ".join(_version(name) for name in ("jax", "optax", "torch", "bitsandbytes"))


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"
