"""Where arithmetic matters: the numbers of float64, ours, Optax and torch side by side.

Every row is a small run. Its number is the size of the last update (at learning rate 1),
unless the row says otherwise. "float64" is the formula in float64 NumPy.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from others import torch, versions
from tqdm import tqdm

import rmsprop_jax

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import reference

Cells = dict[str, float]


def last_update(
    scale_by: Callable[..., Any], gradients: np.ndarray, dtype: Any, **options: Any
) -> float:
    """Mean size of the last update after ``gradients``, an array (steps, width)."""
    tx = scale_by(**options)

    def step(state: Any, g: jax.Array) -> Any:
        updates, state = tx.update(g, state)
        return state, updates

    g = jnp.asarray(gradients, dtype)
    _, updates = jax.lax.scan(step, tx.init(g[0]), g)
    return float(abs(updates[-1].astype(jnp.float32)).mean())


def last_update_of_torch(gradients: np.ndarray, dtype: str, **options: Any) -> float:
    """The same for torch.optim.RMSprop, whose eps is outside the root."""
    assert torch is not None
    w = torch.zeros(gradients.shape[1], dtype=getattr(torch, dtype), requires_grad=True)
    optimizer = torch.optim.RMSprop([w], lr=1.0, **options)
    for g in gradients:
        with torch.no_grad():
            w.zero_()
        w.grad = torch.tensor(g).to(w.dtype)
        optimizer.step()
    return float(abs(w.detach().float()).mean())


def row(
    gradients: np.ndarray, dtype: str = "float32", *, centered: bool = False, decay: float = 0.99
) -> Cells:
    """One row: the same gradients and options for all, eps 1e-8 outside the root."""
    name = "scale_by_stddev" if centered else "scale_by_rms"
    options = {"decay": decay, "eps": 1e-8, "eps_in_sqrt": False}
    g = np.asarray(jnp.asarray(gradients, dtype).astype(jnp.float32), np.float64)
    second_moment = (reference.variance if centered else reference.mean_square)(g, decay)
    cells = {
        "float64": float(abs(reference.normalize(g[-1], second_moment, 1e-8, False)).mean()),
        "ours": last_update(getattr(rmsprop_jax, name), gradients, dtype, **options),
        "Optax": last_update(getattr(optax, name), gradients, dtype, **options),
    }
    if torch is not None:
        cells["torch"] = last_update_of_torch(gradients, dtype, alpha=decay, centered=centered)
    return cells


def noise(mean: float, std: float, steps: int = 4000) -> np.ndarray:
    """Gradients with a mean much larger than their standard deviation."""
    return mean + std * np.random.default_rng(0).standard_normal((steps, 64))


def constant(g: float, steps: int = 100) -> np.ndarray:
    """The same gradient at every step."""
    return np.full((steps, 1), g)


def meta_gradient() -> Cells:
    """The derivative of an update with respect to a zero gradient; the formula gives 1 / eps."""

    def update(g: jax.Array, tx: optax.GradientTransformation) -> Any:
        return tx.update(g, tx.init(g))[0]

    options = {"eps": 1e-8, "eps_in_sqrt": False}
    return {
        "float64": 1e8,
        "ours": float(jax.grad(update)(jnp.array(0.0), rmsprop_jax.scale_by_rms(**options))),
        "Optax": float(jax.grad(update)(jnp.array(0.0), optax.scale_by_rms(**options))),
    }


def zero_over_zero() -> Cells:
    """Hinton's formula has no eps; a zero gradient must not move anything."""
    zero = np.zeros((1, 1))
    return {
        "float64": 0.0,
        "ours": last_update(rmsprop_jax.scale_by_rms, zero, "float32", eps=0.0),
        "Optax": last_update(optax.scale_by_rms, zero, "float32", eps=0.0),
    }


def average_in_bfloat16() -> Cells:
    """The average itself after 5000 gradients of 1 at decay 0.999."""
    ones, decay, steps = jnp.ones(1, jnp.bfloat16), 0.999, 5000

    def average(tx: optax.GradientTransformation) -> float:
        state, _ = jax.lax.scan(
            lambda state, _: (tx.update(ones, state)[1], None), tx.init(ones), length=steps
        )
        return float(optax.tree_utils.tree_get(state, "nu")[0])

    return {
        "float64": 1 - decay**steps,
        "ours": average(rmsprop_jax.scale_by_rms(decay)),
        "Optax": average(optax.scale_by_rms(decay)),
    }


def huge() -> Cells:
    """One gradient of 1e25, whose square overflows float32, then 3000 ordinary ones."""
    gradients = constant(1.0, 3000)
    gradients[0] = 1e25
    gradients[1::2] = -1.0
    return row(gradients, decay=0.9)


ROWS: dict[str, Callable[[], Cells]] = {
    "centred, mean 1e3, std 1": lambda: row(noise(1e3, 1.0), centered=True),
    "centred, mean 1e4, std 1": lambda: row(noise(1e4, 1.0), centered=True),
    "centred, mean 1e6, std 100": lambda: row(noise(1e6, 1e2), centered=True),
    "float16, g = 1e-4": lambda: row(constant(1e-4), "float16"),
    "float16, g = 300": lambda: row(constant(300.0), "float16"),
    "bfloat16, decay 0.999: the average": average_in_bfloat16,
    "one gradient of 1e25, then ones": huge,
    "0 / 0, no eps": zero_over_zero,
    "derivative at g = 0, eps outside": meta_gradient,
}


def main() -> None:
    """Prints the table."""
    names = ["float64", "ours", "Optax", *(["torch"] if torch else [])]
    table = {name: make() for name, make in tqdm(ROWS.items(), unit="row")}
    print(versions(), end="\n\n")
    print("| " + " | ".join([f"{'last update':35}", *(f"{name:>9}" for name in names)]) + " |")
    print("|" + "---|" * (len(names) + 1))
    for name, cells in table.items():
        values = [f"{cells[n]:9.4g}" if n in cells else f"{'-':>9}" for n in names]
        print("| " + " | ".join([f"{name:35}", *values]) + " |")


if __name__ == "__main__":
    main()
