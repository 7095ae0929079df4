"""Compares the RMSprops of other packages with the calls that docs/which_rmsprop.md gives for them.

Each takes 60 steps of mixed-scale gradients with exact zeros, with a falling learning rate if it
supports one. Prints the largest difference, relative to the largest value that each parameter has
had. Packages that are not installed are left out. To install all, beside the extra `frameworks`:

    pip install --no-deps autograd==1.9.1 bitsandbytes==0.50.2 dm-sonnet==2.0.2 dm-tree mlx==0.32.4
    pip install --no-deps mlx-cpu==0.32.4 numpyro==0.22.0 paddlepaddle==3.3.1 pfrl==0.4.0 tabulate
    pip install --no-deps stable-baselines3==2.9.2 timm==1.0.31 torchopt==0.7.3 optree
    pip install astor decorator graphviz httpx multipledispatch networkx opt_einsum safetensors
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.modules import module_alone
from support.trajectories import RATE_DECAY, decaying, path, problem

from rmsprop_jax import dialects, rmsprop

RATE = 1e-2
# From gradients and parameters to a package's trajectory, {leaf: (steps, n)}.
Path_ = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def per_step(make: Callable[[dict[str, Any]], Callable[[Any, float], Any]]) -> Path_:
    """The trajectory of a function that takes one step from gradients and the learning rate."""

    def taken(gradients: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        step, rows = make(params), []
        for t in range(len(gradients["w"])):
            now = step({k: g[t] for k, g in gradients.items()}, RATE * RATE_DECAY**t)
            rows.append({k: np.array(w) for k, w in now.items()})
        return {k: np.stack([row[k] for row in rows]) for k in params}

    return taken


def of_jax_examples(**options: Any) -> Path_:
    """The trajectory of ``jax.example_libraries.optimizers``."""
    optimizers = import_module("jax.example_libraries.optimizers")

    make = optimizers.rmsprop_momentum if "momentum" in options else optimizers.rmsprop

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        init, update, get = make(lambda t: RATE * RATE_DECAY**t, **options)
        carry: list[Any] = [0, init(params)]

        def step(g: Any, _: float) -> Any:
            carry[:] = carry[0] + 1, update(carry[0], g, carry[1])
            return get(carry[1])

        return step

    return per_step(start)


def of_torch(load: Callable[[], Any], falls: bool = True, **options: Any) -> Path_:
    """The trajectory of an optimizer for torch's parameters."""
    torch = import_module("torch")

    make = load()

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        weights = {k: torch.tensor(w).requires_grad_() for k, w in params.items()}
        optimizer = make(list(weights.values()), lr=RATE, **options)

        def step(g: Any, rate: float) -> Any:
            for group in optimizer.param_groups if falls else ():
                group["lr"] = rate
            for k, w in weights.items():
                w.grad = torch.tensor(g[k])
            optimizer.step()
            return {k: w.detach().numpy() for k, w in weights.items()}

        return step

    return per_step(start)


def of_tensorflow(make: Callable[[], Any], apply: str, rate_name: str) -> Path_:
    """The trajectory of an optimizer for TensorFlow's variables, whose method is ``apply``."""
    tf = import_module("tensorflow")

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        weights = {k: tf.Variable(w) for k, w in params.items()}
        optimizer = make()

        def step(g: Any, rate: float) -> Any:
            setattr(optimizer, rate_name, rate)
            given, variables = [tf.constant(g[k]) for k in weights], list(weights.values())
            if apply == "apply":
                optimizer.apply(given, variables)
            else:
                optimizer.apply_gradients(zip(given, variables, strict=True))
            return {k: w.numpy() for k, w in weights.items()}

        return step

    return per_step(start)


def of_mlx() -> Path_:
    """The trajectory of MLX."""
    mx, optimizers = import_module("mlx.core"), import_module("mlx.optimizers")

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        weights = {k: mx.array(w) for k, w in params.items()}
        optimizer = optimizers.RMSprop(RATE)

        def step(g: Any, rate: float) -> Any:
            optimizer.learning_rate = rate
            weights.update(
                optimizer.apply_gradients({k: mx.array(x) for k, x in g.items()}, weights)
            )
            return {k: np.array(w) for k, w in weights.items()}

        return step

    return per_step(start)


def of_paddle(**options: Any) -> Path_:
    """The trajectory of PaddlePaddle."""
    paddle = import_module("paddle")

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        weights = {
            k: paddle.create_parameter(
                w.shape, "float32", default_initializer=paddle.nn.initializer.Assign(w)
            )
            for k, w in params.items()
        }
        optimizer = paddle.optimizer.RMSProp(RATE, parameters=list(weights.values()), **options)

        def step(g: Any, rate: float) -> Any:
            optimizer.set_lr(rate)
            optimizer.clear_grad()
            paddle.add_n(
                [(w * paddle.to_tensor(g[k])).sum() for k, w in weights.items()]
            ).backward()
            optimizer.step()
            return {k: w.numpy() for k, w in weights.items()}

        return step

    return per_step(start)


def of_numpyro(momentum: bool) -> Path_:
    """The trajectory of NumPyro, which wraps JAX's example library."""
    optim = import_module("numpyro.optim")

    def start(params: dict[str, Any]) -> Callable[[Any, float], Any]:
        make = optim.RMSPropMomentum if momentum else optim.RMSProp
        optimizer = make(lambda t: RATE * RATE_DECAY**t)
        carry = [optimizer.init(params)]

        def step(g: Any, _: float) -> Any:
            carry[0] = optimizer.update(g, carry[0])
            return optimizer.get_params(carry[0])

        return step

    return per_step(start)


def of_autograd() -> Path_:
    """The trajectory of HIPS autograd, at a constant learning rate."""
    theirs = import_module("autograd.misc.optimizers").rmsprop

    def taken(gradients: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for k, g in gradients.items():
            seen: list[Any] = []
            theirs(
                lambda _, t, g=g: g[t].astype(float),
                params[k].astype(float),
                lambda x, *_, seen=seen: seen.append(x.copy()),
                num_iters=len(g),
                step_size=RATE,
            )
            # The callback runs before each step, so the last step is missing.
            found[k] = np.stack(seen[1:])
        return found

    return taken


def pfrl() -> Any:
    """Only its optimizer: the package needs gym."""
    return module_alone("pfrl.optimizers.rmsprop_eps_inside_sqrt").RMSpropEpsInsideSqrt


def torchopt() -> Any:
    """Its optimizer for torch's parameters."""
    return import_module("torchopt").RMSProp


def bitsandbytes() -> Any:
    """In 32 bits, since its 8-bit codes differ from ours."""
    return import_module("bitsandbytes").optim.RMSprop32bit


def sonnet() -> Any:
    """With all its options."""
    sonnet = import_module("sonnet")
    return sonnet.optimizers.RMSProp(RATE, momentum=0.9, centered=True, epsilon=1e-3)


def tf_keras() -> Any:
    """The optimizer that replaced the ``legacy`` one."""
    return import_module("tf_keras").optimizers.RMSprop(RATE, momentum=0.9)


class Row(NamedTuple):
    """An implementation, our call for it, and how to run it."""

    package: str
    ours: Callable[[Any], optax.GradientTransformation]
    theirs: Callable[[], Path_]
    falls: bool = True


ROWS = {
    "jax.example_libraries rmsprop": Row("jax", rmsprop, of_jax_examples),
    "jax.example_libraries rmsprop_momentum": Row(
        "jax", lambda lr: rmsprop(lr, momentum=0.9), lambda: of_jax_examples(momentum=0.9)
    ),
    "NumPyro RMSProp": Row("numpyro", rmsprop, lambda: of_numpyro(False)),
    "NumPyro RMSPropMomentum": Row(
        "numpyro", lambda lr: rmsprop(lr, momentum=0.9), lambda: of_numpyro(True)
    ),
    "HIPS autograd rmsprop": Row(
        "autograd",
        lambda lr: rmsprop(lr, initial_scale=1.0, eps_in_sqrt=False),
        of_autograd,
        falls=False,
    ),
    "MLX RMSprop": Row("mlx", lambda lr: rmsprop(lr, 0.99, eps_in_sqrt=False), of_mlx),
    "PaddlePaddle RMSProp, L2": Row(
        "paddlepaddle",
        lambda lr: optax.chain(
            optax.add_decayed_weights(1e-3), rmsprop(lr, 0.95, 1e-6, momentum=0.9)
        ),
        lambda: of_paddle(momentum=0.9, weight_decay=1e-3),
    ),
    "Sonnet 2 RMSProp, centred": Row(
        "dm-sonnet",
        lambda lr: rmsprop(lr, 0.9, 1e-3, centered=True, momentum=0.9),
        lambda: of_tensorflow(sonnet, "apply", "learning_rate"),
    ),
    "tf.keras of TF 2.11 to 2.15": Row(
        "tf-keras",
        lambda lr: dialects.keras(lr, momentum=0.9),
        lambda: of_tensorflow(tf_keras, "apply_gradients", "learning_rate"),
    ),
    "torchopt RMSProp": Row(
        "torchopt", dialects.pytorch, lambda: of_torch(torchopt, falls=False), falls=False
    ),
    "PFRL RMSpropEpsInsideSqrt": Row(
        "pfrl", lambda lr: rmsprop(lr, 0.99, 1e-2), lambda: of_torch(pfrl, eps=1e-2)
    ),
    "bitsandbytes RMSprop, 32 bits": Row(
        "bitsandbytes", dialects.pytorch, lambda: of_torch(bitsandbytes)
    ),
}


def difference(row: Row, gradients: dict[str, Any], params: dict[str, Any]) -> float:
    """The largest difference, relative to the largest value that each parameter has had."""
    theirs = row.theirs()(gradients, params)
    ours = path(row.ours(decaying(RATE) if row.falls else RATE), gradients, params)
    worst = 0.0
    for leaf, expected in theirs.items():
        mine = ours[leaf][: len(expected)]
        size = np.maximum(np.maximum.accumulate(abs(expected), axis=0), abs(params[leaf]))
        worst = np.maximum(worst, (abs(mine - expected) / np.where(size == 0, 1, size)).max())
    return worst


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    gradients, params = problem(seed=0, steps=60, smallest=1e-3)
    print(f"jax {version('jax')}, {jax.devices()[0].device_kind}")
    print("| implementation | version | difference |\n|---|---|---|")
    for name, row in ROWS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                worst = difference(row, gradients, params)
        except ModuleNotFoundError as error:
            print(f"| {name} | left out: {error} | |")
            continue
        assert np.isfinite(worst), name
        print(f"| {name} | {row.package} {version(row.package)} | {worst:.0e} |", flush=True)


if __name__ == "__main__":
    main()
