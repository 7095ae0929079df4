"""Runs that continue after being killed, or with damaged checkpoints."""

import re
import shutil
import signal

import pytest
from support.commands import ONE, bits, finished, rejected, sealed, started, wait_for


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The result of an undisturbed run in one process, and its folder."""
    folder = tmp_path_factory.mktemp("one")
    return finished(folder, *ONE)[0], folder


def test_killed_while_training(never_killed, tmp_path):
    run, _ = started(tmp_path, *ONE)
    wait_for(lambda: sealed(tmp_path, 10), run)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not sealed(tmp_path, 30)
    result, messages = finished(tmp_path, *ONE)
    assert re.search("continues at step [12]0", messages)
    assert bits(result) == bits(never_killed[0])


def test_killed_while_writing_a_checkpoint(never_killed, tmp_path):
    """Retries if the checkpoint was complete before the run was killed."""

    def unsealed():
        folders = (tmp_path / "checkpoints").glob("[123]0*")
        return [f.name for f in folders if not (f / "seal.json").exists()]

    for _ in range(5):
        run, _ = started(tmp_path, *ONE)
        wait_for(unsealed, run)
        run.kill()
        run.wait()
        if unsealed():
            break
    left = unsealed()
    assert left, "no run was killed while writing"
    result, messages = finished(tmp_path, *ONE)
    assert bits(result) == bits(never_killed[0])
    assert not unsealed()
    renamed = [name for name in left if name.isdecimal()]
    assert all(f"checkpoint {name} is rejected: seal.json" in messages for name in renamed)


def test_truncated_checkpoint_is_rejected_and_an_older_one_used(never_killed, tmp_path):
    result, folder = never_killed
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    file = max((tmp_path / "checkpoints/30/default/params.layer 1.w").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    again, messages = finished(tmp_path, *ONE)
    assert "checkpoint 30 is rejected: leaf params.layer 1.w" in messages
    assert "continues at step 20" in messages
    assert bits(again) == bits(result)


def test_checkpoint_in_another_dtype_is_rejected(never_killed, tmp_path):
    shutil.copytree(never_killed[1] / "checkpoints", tmp_path / "checkpoints")
    messages = rejected(tmp_path, *ONE, "--storage", "float32")
    assert "no checkpoint in" in messages.splitlines()[-1]
    assert re.search(r"leaf state\..* is bfloat16.*, and must be float32", messages)


def test_batch_size_that_devices_do_not_divide_is_rejected(tmp_path):
    messages = rejected(tmp_path, *ONE, "--batch-size", "100")
    assert "argument --batch-size: must be a multiple of the 8 devices, got 100" in messages


def test_finished_run_is_left_as_it_is(never_killed, tmp_path):
    """Starting it again draws no picture: there are no new losses."""
    shutil.copytree(never_killed[1] / "checkpoints", tmp_path / "checkpoints")
    again, _ = finished(tmp_path, *ONE)
    assert again.startswith("this run was finished before")
    assert bits(again) == bits(never_killed[0])
    assert not (tmp_path / "picture.png").exists()


def test_result_says_what_each_device_holds(never_killed):
    """An eighth of 3 bytes per parameter, one for v and two for momentum, plus scalars."""
    held = int(re.search(r"(\d+) bytes of state on each", never_killed[0]).group(1))
    size = 64 * 512 + 512 + 512 * 512 + 512 + 512 * 16 + 16
    assert 3 * size / 8 <= held <= 1.01 * 3 * size / 8
