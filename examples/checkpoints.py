"""Orbax checkpoints that are known to be whole, and of this model, before they are read.

Orbax writes a checkpoint under another name and renames it, so one that was cut off is not
taken for one. It keeps no checksums: a bit that has flipped since is read as it is. Here each
checkpoint has a `seal.json`: the checksum of every file, and shape and dtype of every leaf.
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
# At each save Orbax warns that there is nothing to merge, which is so by choice.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The newest checkpoints in a folder, which all processes must see; used in a ``with``."""

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = folder.absolute()
        self.manager = ocp.CheckpointManager(
            self.folder,
            # A folder for each leaf, so that what is damaged has a name.
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
        """Writes a checkpoint, which is one from when it has its seal."""
        self.manager.save(step, args=ocp.args.PyTreeSave(tree))
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            seal = {"leaves": described(tree), "crc32": checksums(folder)}
            unfinished = folder / f"{SEAL}.tmp"
            unfinished.write_text(json.dumps(seal))
            unfinished.rename(folder / SEAL)

    def restore(self, like: Any) -> tuple[int, Any]:
        """The newest good checkpoint: its step, and the tree, placed and typed as ``like``.

        One that is not good is refused with a message, put aside, and the one before it is
        taken. With no checkpoint at all this is step 0 and ``like``.

        Raises:
          ValueError: If there are checkpoints and none is good.
        """
        # One process looks; all must take the same.
        found = self._newest_good(described(like)) if jax.process_index() == 0 else 0
        step = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if step < 0:
            raise ValueError(
                f"no checkpoint in {self.folder} is good, see above; another folder begins anew"
            )
        if step == 0:
            return 0, like
        self.manager.reload()
        placed = ocp.checkpoint_utils.construct_restore_args(like)
        return step, self.manager.restore(
            step, args=ocp.args.PyTreeRestore(like, restore_args=placed)
        )

    def _newest_good(self, leaves: dict[str, str]) -> int:
        """Its step; 0 if there is no checkpoint, -1 if there is no good one."""
        refused = []
        for step in sorted(self.manager.all_steps(), reverse=True):
            folder = self.folder / str(step)
            reason = reason_to_refuse(folder, leaves)
            if reason is None:
                for bad in refused:
                    bad.rename(self.folder / f"refused-{bad.name}-{int(time.time())}")
                return step
            print(f"checkpoint {step} is refused: {reason}", file=sys.stderr)
            refused.append(folder)
        return -1 if refused else 0


def described(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by the name of its folder."""
    return {
        keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in tree_leaves_with_path(tree)
    }


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of each file of a checkpoint."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL]
    return {str(file.relative_to(folder)): zlib.crc32(file.read_bytes()) for file in files}


def reason_to_refuse(folder: Path, expected: dict[str, str]) -> str | None:
    """What is wrong with a checkpoint, with the name of the leaf; None if it is good."""
    try:
        seal = json.loads((folder / SEAL).read_text())
        leaves, sealed = seal["leaves"], seal["crc32"]
    except (OSError, ValueError, KeyError):
        return f"{SEAL} is missing or damaged: it was not finished"
    for leaf in expected | leaves:
        if leaves.get(leaf) != expected.get(leaf):
            return (
                f"leaf {leaf} is {leaves.get(leaf, 'not there')}, and must be "
                f"{expected.get(leaf, 'not there')}: of another model or storage"
            )
    found = checksums(folder)
    for file in sealed:
        if found.get(file) != sealed[file]:
            how = "damaged" if file in found else "missing"
            return f"leaf {Path(file).parent.name}: its file {Path(file).name} is {how}"
    return None
