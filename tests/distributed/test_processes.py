"""Two processes: the same bits as one process, and what happens when one of them dies."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from support.commands import (
    ROOT,
    STARTED,
    TWO,
    bits,
    command,
    environment,
    finished,
    sealed,
    started,
    wait_for,
)
from support.layouts import (
    LAYOUTS,
    OPTIONS,
    STORAGES,
    assert_same_updates_and_state,
    assert_trained_alike,
    mesh_of,
    trained,
    updates_and_state,
)

WORKER = Path(__file__).with_name("worker.py")
FULL_DISK = """
import pathlib
rename = pathlib.Path.rename

def full(self, target):
    if str(target).endswith("seal.json"):
        raise OSError(28, "No space left on device")
    return rename(self, target)

pathlib.Path.rename = full
"""


def test_one_of_two_is_killed(tmp_path):
    expected, _ = finished(tmp_path / "left alone", *TWO)
    folder = tmp_path / "killed"
    run, messages = started(folder, *TWO)
    wait_for(lambda: sealed(folder, 10), run)
    second = int(re.search(r"process 1: pid (\d+)", messages.read_text()).group(1))
    os.kill(second, signal.SIGKILL)
    # Process 0 does not wait for the other's part of a sum.
    assert run.wait(timeout=60) == 1
    text = messages.read_text()
    assert "process 1 was killed by signal 9" in text or "process 0 ended with" in text
    assert not sealed(folder, 30)
    result, messages = finished(folder, *TWO)
    assert re.search("continues at step [12]0", messages)
    assert bits(result) == bits(expected)


def test_started_by_a_scheduler(tmp_path):
    """Two processes as Slurm would start them, with its variables."""
    runs = [
        subprocess.Popen(
            command(tmp_path, "--cluster", "--batch-size", "64"),
            start_new_session=True,
            env=environment(
                SLURM_JOB_ID=str(os.getpid()),
                SLURM_STEP_NODELIST="localhost",
                SLURM_STEP_NUM_TASKS="2",
                SLURM_NTASKS="2",
                SLURM_PROCID=str(process),
                SLURM_LOCALID="0",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    STARTED.extend(runs)
    (result, messages), (nothing, _) = (run.communicate(timeout=200) for run in runs)
    assert runs[0].returncode == runs[1].returncode == 0, messages
    assert "2 devices in all, processes: 2" in result
    assert "train_distributed" not in nothing


def test_an_error_in_one_of_two_stops_both(tmp_path):
    """The disk is full when the first one seals a checkpoint, and the second waits for it."""
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    run, messages = started(tmp_path, *TWO, PYTHONPATH=str(tmp_path))
    assert run.wait(timeout=100) == 1
    assert "OSError: [Errno 28] No space left on device" in messages.read_text()
    assert "process 0 ended with 1, and so the others were stopped" in messages.read_text()


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    run, messages = started(tmp_path, *TWO, "--steps", "100000")
    wait_for(lambda: messages.read_text().count("pid ") == 2, run)
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", messages.read_text())]
    run.kill()
    run.wait()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    output = tmp_path_factory.mktemp("two") / "results"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", WORKER, address, str(process), output],
            env=environment(PYTHONPATH=str(ROOT / "tests")),
        )
        for process in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return pickle.loads(output.read_bytes())


def as_in(leaves, expected):
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_the_same_bits_on_two_processes(dtype, layout, of_two_processes):
    """With the same gradients, in every dtype and layout."""
    one = updates_and_state(mesh_of(1), layout, dtype, OPTIONS[1])
    assert_same_updates_and_state(as_in(of_two_processes[layout, dtype], one), one)


def test_training_on_two_processes_is_that_of_one(of_two_processes, x64):
    one = trained(mesh_of(1), "ZeRO-1")
    assert_trained_alike(as_in(of_two_processes["trained"], one), one)
