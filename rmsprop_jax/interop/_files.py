"""Files that are replaced as a whole or not at all, and errors that name them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Source = str | os.PathLike[str]


def is_path(source: Any) -> bool:
    """Whether ``source`` is the path of a file."""
    return isinstance(source, str | os.PathLike)


@contextlib.contextmanager
def errors_name(source: Any) -> Iterator[None]:
    """Puts the path of the file before the message of an error, if ``source`` is a path."""
    try:
        yield
    except (ValueError, TypeError) as error:
        files = source if isinstance(source, tuple | list) else [source]
        if all(map(is_path, files)) and type(error) in (ValueError, TypeError):
            paths = [os.fspath(file) for file in files]
            if not any(path in str(error) for path in paths):
                raise type(error)(f"{', '.join(paths)}: {error}") from error
        raise


@contextlib.contextmanager
def replacing(*files: Source) -> Iterator[list[Path]]:
    """Yields a path to write to for each of ``files``, which are replaced at the end.

    Each path has the name of its file, in a new folder beside it. At the end every file in that
    folder replaces the one of the same name: TensorFlow writes two files for one path. After an
    error, such as a full disk or a read-only folder, the old files are unchanged. The mode of a
    file is kept, and a symbolic link stays one.
    """
    with contextlib.ExitStack() as stack:
        try:
            paths = [_path_beside(file, stack) for file in files]
            yield paths
            folders = {path.parent: None for path in paths}
            _replace([new for folder in folders for new in sorted(folder.iterdir())])
        except (OSError, RuntimeError) as error:
            names = ", ".join(os.fspath(file) for file in files)
            raise OSError(f"{names} could not be written and is unchanged: {error}") from error


def _path_beside(file: Source, stack: contextlib.ExitStack) -> Path:
    """The file's path in a new folder beside it; the folder is removed with ``stack``."""
    target = Path(os.path.realpath(file))
    folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    return Path(stack.enter_context(folder)) / target.name


def _replace(new_files: Sequence[Path]) -> None:
    """Moves files into the folder above, all of them or none."""
    old = [Path(os.path.realpath(new.parent.parent / new.name)) for new in new_files]
    for new, target in zip(new_files, old, strict=True):
        if target.exists():
            shutil.copymode(target, new)
            # A backup until all are in place: a link, or a copy where links are not supported.
            _link_or_copy(target, new.with_name(new.name + ".old"))
    moved = []
    try:
        for new, target in zip(new_files, old, strict=True):
            moved.append((new.with_name(new.name + ".old"), target))
            os.replace(new, target)
    except BaseException:
        for backup, target in moved:
            if backup.exists():
                os.replace(backup, target)
            elif not (backup.parent / target.name).exists():
                target.unlink(missing_ok=True)
        raise


def _link_or_copy(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)
