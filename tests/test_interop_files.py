"""Files are replaced as a whole or not at all, in every format of `interop`."""

import errno
import os
import stat
import tempfile

import pytest

from rmsprop_jax.interop import _files


def write_all(files, text):
    with _files.replacing(*files) as paths:
        for path in paths:
            path.write_text(text)


@pytest.fixture
def files(tmp_path):
    """Two files, like TensorFlow's `.index` and `.data`."""
    paths = [tmp_path / "run.index", tmp_path / "run.data"]
    for path in paths:
        path.write_text("old")
    return paths


def assert_all(files, text):
    assert {file.name: file.read_text() for file in files} == dict.fromkeys(
        [file.name for file in files], text
    )
    [folder] = {file.parent for file in files}
    assert sorted(os.listdir(folder)) == sorted(file.name for file in files)


def test_files_are_replaced(files):
    write_all(files, "new")
    assert_all(files, "new")


def test_new_files_are_created(tmp_path):
    new = [tmp_path / "a", tmp_path / "b"]
    write_all(new, "new")
    assert_all(new, "new")


def test_a_file_written_beside_is_moved_too(files):
    """TensorFlow is given one path, and writes two files."""
    with _files.replacing(files[0]) as [index]:
        index.write_text("new")
        index.with_suffix(".data").write_text("new")
    assert_all(files, "new")


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640])
def test_the_mode_is_kept(files, mode):
    files[0].chmod(mode)
    write_all(files, "new")
    assert stat.S_IMODE(files[0].stat().st_mode) == mode


def test_a_symbolic_link_stays_one_and_its_target_is_replaced(files, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "latest.pt"
    link.symlink_to(files[0])
    write_all([link], "new")
    assert link.is_symlink()
    assert files[0].read_text() == "new"
    assert os.listdir(tmp_path / "links") == ["latest.pt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("stream")])
def test_a_full_disk_leaves_the_old_files(files, error):
    def fill_the_disk():
        with _files.replacing(*files) as paths:
            paths[0].write_text("half")
            raise error

    with pytest.raises(OSError, match=r"run\.index.*run\.data could not be written.*unchanged"):
        fill_the_disk()
    assert_all(files, "old")


@pytest.mark.parametrize("moved", [0, 1])
def test_a_disk_that_fails_between_two_files_loses_neither(files, moved, monkeypatch):
    """If the second file cannot be moved into place, the first is put back."""
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == moved + 1:
            raise OSError(errno.EIO, "broken disk")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="broken disk"):
            write_all(files, "new")
    assert_all(files, "old")


def test_a_new_file_is_removed_again(tmp_path, monkeypatch):
    """After an interrupt between two new files, neither stays."""
    replace, new = os.replace, [tmp_path / "run.data", tmp_path / "run.index"]

    def interrupt(source, target):
        if str(target).endswith("index"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_all(new, "new")
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_links(files, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    write_all(files, "new")
    assert_all(files, "new")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"missing/run\.pt could not be written"):
        write_all([tmp_path / "missing" / "run.pt"], "new")


def test_a_read_only_folder_leaves_the_old_files(files, monkeypatch):
    def read_only(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(OSError, match=r"run\.index.*unchanged.*Permission denied"):
        write_all(files, "new")
    assert_all(files, "old")


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_errors_name_the_file(tmp_path, kind):
    file = tmp_path / "run.pt"
    with pytest.raises(kind, match=r"run\.pt: w is wrong"), _files.errors_name(file):
        raise kind("w is wrong")
    with pytest.raises(kind, match=r"^w is wrong"), _files.errors_name({"w": 1}):
        raise kind("w is wrong")
    with pytest.raises(kind) as raised, _files.errors_name(file):
        raise kind(f"{file} cannot be read")
    assert str(raised.value).count("run.pt") == 1
