"""Trains a network on all devices of one or many processes, and continues after a crash.

On a CPU it simulates eight devices, and ``--processes 2`` starts two processes with four each. On
a cluster the scheduler starts one process per host, each with ``--cluster``. The layout says
what each device holds: everything (data-parallel), all parameters and a shard of the state
(ZeRO-1), or a shard of both (FSDP). Start the same command again after a crash, and it continues
from the newest good checkpoint, bit for bit.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import flags
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from checkpoints import Checkpoints, UnfitCheckpointsError
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from tqdm import tqdm

from rmsprop_jax import rmsprop, sharding

LAYOUTS = ("data-parallel", "zero-1", "fsdp")
STORAGES = ("float32", "bfloat16", "float8_e5m2")
# There are ten digits; sixteen outputs can be sharded over eight devices.
SIZES = (64, 512, 512, 16)
TRAINING = 1280
# A restored run must share these with the first; layout and devices may change.
SETTINGS = ("seed", "steps", "batch_size", "learning_rate")

AGAIN = "the same command continues from the newest checkpoint, if there is one"


class Shardings(NamedTuple):
    """Shardings of the parameters, of the state, and of the gradients before the update."""

    params: Any
    state: Any
    gradients: Any


class Run(NamedTuple):
    """The result of a run."""

    params: Any
    state: Any
    first_step: int
    losses: list[float]
    accuracy: float


def optimizer_of(args: argparse.Namespace, storage: str) -> optax.GradientTransformation:
    """RMSprop; a step whose gradients are not finite on one device is skipped by all."""
    schedule = optax.cosine_decay_schedule(args.learning_rate, args.steps)
    # The default keeps the averages of float64 parameters in float64.
    dtype = None if storage == "float32" else storage
    return optax.apply_if_finite(
        rmsprop(schedule, decay=0.99, momentum=0.9, accumulator_dtype=dtype), 5
    )


def initial_params(seed: Any) -> Any:
    """A network with two hidden layers of 512: 304 000 parameters."""
    shapes = list(pairwise(SIZES))
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        f"layer {i}": {
            "w": jax.random.normal(key, shape) / shape[0] ** 0.5,
            "b": jnp.zeros(shape[1]),
        }
        for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def logits_of(params: Any, x: jax.Array) -> jax.Array:
    """Logits of shape (n, 16)."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def shardings_of(layout: str, optimizer: optax.GradientTransformation, mesh: Mesh) -> Shardings:
    """The shardings of a layout."""
    params = jax.eval_shape(initial_params, 0)
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    sharded = sharding.shard_over(params, mesh)
    of_gradients = replicated if layout == "data-parallel" else sharded
    of_params = sharded if layout == "fsdp" else replicated
    of_state = sharding.state_shardings(optimizer, params, of_gradients)
    return Shardings(of_params, of_state, of_gradients)


def step_of(optimizer: optax.GradientTransformation, shardings: Shardings, replicated: Any) -> Any:
    """The compiled training step. Communication between devices follows from the shardings."""

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss_of(params: Any) -> jax.Array:
            logits = logits_of(sharding.with_sharding_constraint(params, replicated), x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        gradients = sharding.with_sharding_constraint(gradients, shardings.gradients)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    out_shardings = (shardings.params, shardings.state, None)
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=out_shardings)


def train(args: argparse.Namespace) -> Run:
    """Trains from the newest checkpoint, or from the start."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    optimizer = optimizer_of(args, args.storage)
    shardings = shardings_of(args.layout, optimizer, mesh)
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shardings.params)
    step = step_of(optimizer, shardings, replicated)
    params = jax.jit(initial_params, out_shardings=shardings.params)(args.seed)
    state = jax.jit(optimizer.init, out_shardings=shardings.state)(params)

    data: Any = load_digits()
    order = np.random.default_rng(args.seed).permutation(len(data.target))
    images, labels = (data.data[order] / 16).astype(jnp.result_type(float)), data.target[order]
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def batch(number: int) -> list[jax.Array]:
        # Depends on the step alone, so that a restored run sees the same batches.
        chosen = np.random.default_rng((args.seed, number)).integers(TRAINING, size=args.batch_size)
        return [
            jax.make_array_from_callback(array.shape, rows, lambda index, array=array: array[index])
            for array in (images[chosen], labels[chosen])
        ]

    losses = []
    settings = {name: getattr(args, name) for name in SETTINGS}
    with Checkpoints(args.checkpoints, settings) as checkpoints:
        tree = {"params": params, "state": state}
        first, tree = checkpoints.restore(tree) or (0, tree)
        params, state = tree["params"], tree["state"]
        if first and jax.process_index() == 0:
            print(f"continues at step {first}", file=sys.stderr)
        with tqdm(
            total=args.steps, initial=first, unit="step", disable=jax.process_index() > 0
        ) as bar:
            for number in range(first, args.steps):
                params, state, loss = step(params, state, *batch(number))
                losses.append(float(loss))
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.4f}")
                if (number + 1) % args.checkpoint_every == 0 or number + 1 == args.steps:
                    checkpoints.save(number + 1, {"params": params, "state": state})

    params = jax.jit(lambda params: params, out_shardings=replicated)(params)
    guesses = jax.jit(logits_of)(params, images[TRAINING:]).argmax(axis=1)
    return Run(params, state, first, losses, float(np.mean(guesses == labels[TRAINING:])))


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that each device holds of a tree of arrays or of their shapes."""

    def held(leaf: Any, sharding: NamedSharding) -> int:
        return int(np.prod(sharding.shard_shape(leaf.shape), dtype=int)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, tree, shardings)))


def bytes_held(tree: Any) -> int:
    """Bytes that the first device of this process holds, counted from the arrays' own shards."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == jax.local_devices()[0])


def draw(args: argparse.Namespace, run: Run) -> None:
    """Bytes on each device in each layout and storage, and the loss."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    params = jax.eval_shape(initial_params, 0)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2)
    )
    ticks = []
    for storage in STORAGES:
        optimizer = optimizer_of(args, storage)
        state = jax.eval_shape(optimizer.init, params)
        for layout in LAYOUTS:
            shardings = shardings_of(layout, optimizer, mesh)
            row, is_run = len(ticks), (storage, layout) == (args.storage, args.layout)
            trees = (params, shardings.params), (state, shardings.state)
            kilobytes = [bytes_per_device(*tree) / 1000 for tree in trees]
            style = {"edgecolor": "black", "linewidth": 2.0 if is_run else 0.3}
            left.barh(row, kilobytes[0], color="#56B4E9", **style)
            bar = left.barh(row, kilobytes[1], left=kilobytes[0], color="#D55E00", **style)
            left.bar_label(bar, [f" {kilobytes[1]:,.0f}"])
            ticks.append(f"{layout}, {storage}" + " (this run)" * is_run)
    left.set_yticks(range(len(ticks)), ticks)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set(xlabel="kilobytes", title=f"on each of {mesh.size} devices")
    left.legend(["parameters", "RMSprop's state (the number)"], loc="lower right")
    right.plot(np.arange(run.first_step, args.steps) + 1, run.losses, color="#0072B2")
    right.set(
        xlabel="step", ylabel="cross-entropy of the batch", yscale="log", title="training loss"
    )
    right.set_xlim(0, args.steps)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(args.output, dpi=120)
    plt.close(figure)


def report(args: argparse.Namespace, run: Run, seconds: float) -> None:
    """The picture, unless there is nothing new, and the result line."""
    if run.losses:
        draw(args, run)
        picture = f"picture in {args.output}"
    else:
        print("this run was finished before; another folder of checkpoints begins a new one")
        picture = "no new picture"
    bits = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.params))
    print(
        f"train_distributed: accuracy {run.accuracy:.1%} on {1797 - TRAINING} held-out digits "
        f"after {args.steps} steps, parameters {zlib.crc32(bits):08x}; "
        f"{args.layout}, {args.storage}, {jax.device_count()} devices in all, processes: "
        f"{jax.process_count()}, {bytes_held(run.state)} bytes of state on each device; "
        f"{jax.devices()[0].device_kind}, {seconds:.0f} s; {picture}"
    )


def work(args: argparse.Namespace, process: int = 0, address: str | None = None) -> None:
    """The work of one process."""
    began = time.perf_counter()
    if address is not None:
        # The process that started this one stops it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=end_with_parent, daemon=True).start()
        # Otherwise each would take all GPUs of this machine.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.devices // args.processes)
        jax.distributed.initialize(address, args.processes, process)
        print(f"process {process}: pid {os.getpid()}\n", end="", file=sys.stderr, flush=True)
    elif args.cluster:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            sys.exit(f"--cluster finds no cluster that JAX knows (Slurm, Open MPI, TPU): {error}")
    else:
        jax.config.update("jax_num_cpu_devices", args.devices)
    if args.batch_size % jax.device_count():
        sys.exit(
            f"argument --batch-size: must be a multiple of the {jax.device_count()} devices, "
            f"got {args.batch_size}"
        )
    try:
        run = train(args)
        if jax.process_index() == 0:
            report(args, run, time.perf_counter() - began)
    except Exception as error:
        if not isinstance(error, UnfitCheckpointsError):
            traceback.print_exc()
        elif jax.process_index() == 0:
            print(error, file=sys.stderr)
        # At once: an orderly exit waits for the others, and they wait for this one's data.
        os._exit(1)


def end_with_parent() -> None:
    """Ends with the parent, so that no process goes on writing to the folder of a killed run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def start(args: argparse.Namespace) -> None:
    """Starts the processes on this machine; when one fails, stops the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(args, i, address)) for i in range(args.processes)]
    for process in processes:
        process.start()
    running = list(processes)
    try:
        while running and not any(process.exitcode for process in processes):
            wait([process.sentinel for process in running])
            running = [process for process in running if process.exitcode is None]
        failed = [(i, p.exitcode) for i, p in enumerate(processes) if p.exitcode]
    finally:
        for process in processes:
            process.kill()
            process.join()
    for i, code in failed[:1]:
        end = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        sys.exit(
            f"process {i} {end}, and so the others were stopped{'; ' + AGAIN if code < 0 else ''}"
        )


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "train_distributed.png")
    number = flags.whole_number
    parser.add_argument("--layout", choices=LAYOUTS, default="zero-1", help="what is sharded")
    parser.add_argument(
        "--storage", choices=STORAGES, default="float32", help="dtype of the averages"
    )
    parser.add_argument(
        "--devices",
        type=number,
        default=8,
        help="how many a CPU simulates, for all processes together; not with --cluster",
    )
    parser.add_argument(
        "--processes", type=number, default=1, help="how many to start on this machine, on its CPU"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="this is one of many processes, which a scheduler has started",
    )
    parser.add_argument("--steps", type=number, default=200, help="in total")
    parser.add_argument(
        "--batch-size", type=number, default=128, help="digits per step, on all devices together"
    )
    parser.add_argument(
        "--learning-rate",
        type=flags.number_below(100),
        default=5e-4,
        help="at the start; a cosine schedule decays it to zero",
    )
    parser.add_argument(
        "--checkpoint-every", type=number, default=50, help="steps between checkpoints"
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("train_distributed.checkpoints"),
        help="folder that all processes see; a run may continue with another layout",
    )
    args = parser.parse_args()
    if args.devices % args.processes:
        parser.error(
            f"argument --devices: must be a multiple of {args.processes}, got {args.devices}"
        )
    if args.cluster and args.processes > 1:
        parser.error("argument --processes: on a cluster the scheduler starts the processes")
    return args


def main() -> None:
    """Trains in this process, or in several that it starts."""
    args = parse_arguments()
    try:
        if args.processes > 1:
            start(args)
        else:
            work(args)
    except KeyboardInterrupt:
        print(f"\nstopped; {AGAIN}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
