"""Real processes: the same bits on two as on one, and runs that are killed and go on."""

import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from layouts import (
    LAYOUTS,
    OPTIONS,
    STORAGES,
    assert_same_updates_and_state,
    assert_trained_alike,
    mesh_of,
    trained,
    updates_and_state,
)

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
FLAGS = ["--steps", "30", "--checkpoint-every", "10", "--storage", "float8_e5m2"]
ONE, TWO = ["--devices", "8"], ["--devices", "4", "--processes", "2"]


def command(folder, *flags):
    script = ROOT / "examples" / "train_distributed.py"
    paths = ["--checkpoints", folder / "checkpoints", "--output", folder / "picture.png"]
    # fmt: off
    return [sys.executable, "-W", "error", script, *FLAGS, *paths, *flags]
    # fmt: on


def environment(**more):
    # Eight devices are asked for by a flag; the tests' own variable would be in its way.
    rest = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return rest | {"MPLBACKEND": "agg"} | more


def finished(folder, *flags, **more):
    """What a run that is left alone prints: the result, and the messages."""
    folder.mkdir(exist_ok=True)
    run = subprocess.run(
        command(folder, *flags),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def bits(result):
    """The checksum of the parameters in a result line."""
    return re.search(r"parameters ([0-9a-f]{8})", result).group(1)


def begun(folder, *flags):
    """A run in the background, in a session of its own, and where its messages go."""
    folder.mkdir(exist_ok=True)
    messages = folder / "messages"
    with open(messages, "w") as file:
        run = subprocess.Popen(
            command(folder, *flags),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    return run, messages


def wait_for(condition, run):
    """As soon as the condition holds; the run must not end before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def sealed(folder, step):
    return (folder / "checkpoints" / str(step) / "seal.json").exists()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The result of a run on one process, and its folder."""
    folder = tmp_path_factory.mktemp("one")
    return finished(folder, *ONE)[0], folder


@pytest.mark.xdist_group("one process")
def test_killed_in_training(never_killed, tmp_path):
    run, _ = begun(tmp_path, *ONE)
    wait_for(lambda: sealed(tmp_path, 10), run)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not sealed(tmp_path, 30)
    result, messages = finished(tmp_path, *ONE)
    assert re.search("goes on at step [12]0", messages)
    assert bits(result) == bits(never_killed[0])


@pytest.mark.xdist_group("one process")
def test_killed_in_writing(never_killed, tmp_path):
    """Killed when a checkpoint is half there; it is tried again if it was whole by then."""

    def half():
        folders = (tmp_path / "checkpoints").glob("[123]0*")
        return [f.name for f in folders if not (f / "seal.json").exists()]

    for _ in range(5):
        run, _ = begun(tmp_path, *ONE)
        wait_for(half, run)
        run.kill()
        run.wait()
        if half():
            break
    left = half()
    assert left, "no run was killed in writing"
    result, messages = finished(tmp_path, *ONE)
    assert bits(result) == bits(never_killed[0])
    assert not half()
    whole = [name for name in left if name.isdecimal()]
    assert all(f"checkpoint {name} is refused: seal.json" in messages for name in whole)


def test_one_of_two_is_killed(tmp_path):
    expected, _ = finished(tmp_path / "left alone", *TWO)
    folder = tmp_path / "killed"
    run, messages = begun(folder, *TWO)
    wait_for(lambda: sealed(folder, 10), run)
    second = int(re.search(r"process 1: pid (\d+)", messages.read_text()).group(1))
    os.kill(second, signal.SIGKILL)
    # Not left in wait for the other's part of a sum.
    assert run.wait(timeout=60) == 1
    assert "so the others were stopped; the same command goes on" in messages.read_text()
    assert not sealed(folder, 30)
    result, messages = finished(folder, *TWO)
    assert re.search("goes on at step [12]0", messages)
    assert bits(result) == bits(expected)


@pytest.mark.xdist_group("workers")
def test_started_by_a_scheduler(tmp_path):
    """Two processes as Slurm would start them, with its variables."""
    runs = [
        subprocess.Popen(
            command(tmp_path, "--cluster", "--batch-size", "64"),
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
    (result, messages), (nothing, _) = (run.communicate(timeout=200) for run in runs)
    assert runs[0].returncode == runs[1].returncode == 0, messages
    assert "2 devices of 2 processes" in result
    assert "train_distributed" not in nothing


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    run, messages = begun(tmp_path, *TWO, "--steps", "100000")
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


def final_params(folder):
    saved = (folder / "checkpoints" / "30" / "default").absolute()
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            checkpointer.metadata(saved).item_metadata.tree,
        )
        tree = checkpointer.restore(saved, restore_args=as_numpy)
    return jax.tree.leaves(tree["params"])


def gone_back(folder, to):
    """A copy of a run, as it was at step 20."""
    shutil.copytree(folder / "checkpoints", to / "checkpoints")
    shutil.rmtree(to / "checkpoints" / "30")
    return to


@pytest.mark.parametrize(
    ("layout", "before", "after"), [("zero-1", "8", "2"), ("fully-sharded", "2", "8")]
)
def test_goes_on_on_another_number_of_devices(layout, before, after, tmp_path):
    """Within 1e-6 of the run that stayed where it was.

    In float32: in one byte another last digit of a sum may round an average up, not down.
    """
    flags = ["--layout", layout, "--storage", "float32"]
    finished(tmp_path / "stayed", *flags, "--devices", before)
    moved = gone_back(tmp_path / "stayed", tmp_path / "moved")
    _, messages = finished(moved, *flags, "--devices", after)
    assert "goes on at step 20" in messages
    for a, b in zip(final_params(moved), final_params(tmp_path / "stayed"), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


@pytest.mark.xdist_group("one process")
def test_a_truncated_checkpoint_is_refused_and_the_older_taken(never_killed, tmp_path):
    result, folder = never_killed
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    file = max((tmp_path / "checkpoints/30/default/params.layer 1.w").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    again, messages = finished(tmp_path, *ONE)
    assert "checkpoint 30 is refused: leaf params.layer 1.w" in messages
    assert "goes on at step 20" in messages
    assert bits(again) == bits(result)


@pytest.mark.xdist_group("one process")
def test_of_another_storage_is_refused(never_killed, tmp_path):
    shutil.copytree(never_killed[1] / "checkpoints", tmp_path / "checkpoints")
    run = subprocess.run(
        command(tmp_path, *ONE, "--storage", "float32"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 1
    assert "ValueError: no checkpoint in" in run.stderr
    assert re.search(r"leaf state\..* is not there, and must be float32", run.stderr)


@pytest.mark.xdist_group("one process")
def test_result_says_what_each_device_holds(never_killed):
    """304 000 parameters: an eighth of a byte for v and two for momentum, and scalars."""
    held = int(re.search(r"(\d+) bytes of state on each", never_killed[0]).group(1))
    size = 64 * 512 + 512 + 512 * 512 + 512 + 512 * 16 + 16
    assert 3 * size / 8 <= held <= 1.01 * 3 * size / 8


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


@pytest.mark.xdist_group("workers")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_the_same_bits_on_two_processes(dtype, layout, of_two_processes):
    """On the same gradients, in every storage and layout."""
    one = updates_and_state(mesh_of(1), layout, dtype, OPTIONS[1])
    assert_same_updates_and_state(as_in(of_two_processes[layout, dtype], one), one)


@pytest.mark.xdist_group("workers")
def test_training_on_two_processes_is_that_of_one(of_two_processes, x64):
    one = trained(mesh_of(1), "ZeRO-1")
    assert_trained_alike(as_in(of_two_processes["trained"], one), one)
