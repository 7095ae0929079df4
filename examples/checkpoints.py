"""Orbax checkpoints that are checked to be complete, and of this model, before they are read.

Orbax writes a checkpoint under another name and renames it, so an interrupted one is not
restored. It keeps no checksums: a bit that flips later goes unnoticed. Here each checkpoint has
a `seal.json` with the checksum of every file, and the shape and dtype of every leaf. For that,
one process reads the files back, at each save and at the start.
"""

import json
import logging
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_leaves_with_path

SEAL = "seal.json"
UNFINISHED = f"it was not finished, it has no {SEAL}"
# Instead of a step.
NONE, UNFIT = -1, -2
# At each save Orbax warns that there is nothing to merge, which is intended.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge" not in record.getMessage())


class UnfitCheckpointsError(ValueError):
    """There are checkpoints, but none is good."""


class Checkpoints:
    """The newest checkpoints in a folder that all processes see; to be used in a ``with``."""

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None, keep: int = 3):
        if ":/" in str(folder) or keep < 2:
            raise ValueError(
                "checkpoints need a folder that is mounted, and keep >= 2, because the newest is "
                f"not valid until it is sealed; got {folder} and {keep}"
            )
        self.folder = folder.absolute()
        # Settings that a run must share with the one that it continues.
        self.settings = settings or {}
        self.manager = ocp.CheckpointManager(
            self.folder,
            # One folder per leaf, so that messages can name the damaged one.
            item_handlers=ocp.PyTreeCheckpointHandler(use_ocdbt=False),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.close()

    def save(self, step: int, tree: Any) -> None:
        """Writes a checkpoint, which is valid once it has its seal.

        Raises:
          ValueError: If there is one of this step or a later one.
        """
        leaves = described(tree)
        if not self.manager.save(step, args=ocp.args.PyTreeSave(tree)):
            raise ValueError(f"step must be above {self.manager.latest_step()}, got {step}")
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            seal = {"settings": self.settings, "leaves": leaves, "crc32": checksums(folder)}
            unfinished = folder / f"{SEAL}.tmp"
            unfinished.write_text(json.dumps(seal))
            unfinished.rename(folder / SEAL)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest good checkpoint: its step, and the tree, sharded and typed like ``like``.

        A bad one is rejected with a message and renamed, and the one before it is tried. None if
        there is no checkpoint, or none that was finished.

        Raises:
          UnfitCheckpointsError: If there are checkpoints and none is good.
        """
        # One process decides, so that all restore the same step.
        found = self._newest_good(like) if jax.process_index() == 0 else NONE
        step = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if step == UNFIT:
            raise UnfitCheckpointsError(
                f"no checkpoint in {self.folder} is good for this run; "
                "to begin anew, pass another folder"
            )
        self.manager.reload()
        if step == NONE:
            return None
        placed = ocp.checkpoint_utils.construct_restore_args(like)
        return step, self.manager.restore(
            step, args=ocp.args.PyTreeRestore(like, restore_args=placed)
        )

    def _newest_good(self, like: Any) -> int:
        rejected: dict[Path, str] = {}
        good = NONE
        for step in sorted(self.manager.all_steps(), reverse=True):
            folder = self.folder / str(step)
            reason = reason_to_reject(folder, described(like), self.settings)
            if reason is None:
                good = step
                break
            print(f"checkpoint {step} is rejected: {reason}", file=sys.stderr)
            rejected[folder] = reason
        if good == NONE and any(reason != UNFINISHED for reason in rejected.values()):
            return UNFIT
        for folder in rejected:
            folder.rename(self.folder / f"rejected-{folder.name}-{int(time.time())}")
        return good


def described(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by the name of its folder."""
    leaves = {}
    for path, leaf in tree_leaves_with_path(tree):
        name = keystr(path, simple=True, separator=".")
        if name in leaves or not hasattr(leaf, "dtype"):
            raise ValueError(f"leaf {name} must be an array, and the only one of this name")
        leaves[name] = f"{leaf.dtype}{list(leaf.shape)}"
    return leaves


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file of a checkpoint."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL]
    return {str(file.relative_to(folder)): zlib.crc32(file.read_bytes()) for file in files}


def reason_to_reject(
    folder: Path, expected: dict[str, str], settings: dict[str, Any]
) -> str | None:
    """What is wrong with a checkpoint, with the name of the leaf; None if it is good."""
    try:
        seal = json.loads((folder / SEAL).read_text())
        leaves, sealed, of_run = seal["leaves"], seal["crc32"], seal["settings"]
    except FileNotFoundError:
        return UNFINISHED
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {SEAL} is damaged"
    # Leaves with another dtype or shape first, then missing ones: the former say more.
    for leaf in sorted(expected | leaves, key=lambda leaf: leaf not in expected.keys() & leaves):
        if leaves.get(leaf) != expected.get(leaf):
            return (
                f"leaf {leaf} is {leaves.get(leaf, 'not there')}, and must be "
                f"{expected.get(leaf, 'not there')}: of another model or storage"
            )
    for name in settings:
        if of_run.get(name) != settings[name]:
            return f"its run had {name} {of_run.get(name)}, and this one has {settings[name]}"
    found = checksums(folder)
    for file in sealed:
        if found.get(file) != sealed[file]:
            how = "damaged" if file in found else "missing"
            return f"leaf {Path(file).parent.name}: its file {Path(file).name} is {how}"
    return None
