"""How far each framework's RMSprop steps as gradients shrink.

The gradients have one size and alternating signs; all have the same learning rate and decay. What
differs is where epsilon is added, how large it is, and what the average starts from.
"""

import argparse
from pathlib import Path

import flags
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from rmsprop_jax import dialects, rmsprop

DECAY = 0.9
SIZES = np.logspace(-12, 0, 121, dtype=np.float32)
STEPS = (10, 1000)
# Okabe and Ito's colours, each with a line style.
RULES = {
    "no eps (the lecture)": (dialects.hinton(1.0, DECAY), "black", ":"),
    "outside, 1e-8 (torch, fastai)": (dialects.pytorch(1.0, DECAY), "#D55E00", "-"),
    "outside, 1e-7 (tf.keras to TF 2.10)": (dialects.tf_keras(1.0, DECAY), "#E69F00", "--"),
    "inside, 1e-8 (Optax)": (rmsprop(1.0, DECAY), "#0072B2", "-"),
    "inside, 1e-7 (Keras 3)": (dialects.keras(1.0, DECAY), "#56B4E9", "--"),
    "inside, 1e-10, v from 1 (TensorFlow 1, timm)": (
        dialects.tensorflow_v1(1.0, DECAY),
        "#009E73",
        "-.",
    ),
}


def step_lengths(optimizer: optax.GradientTransformation) -> np.ndarray:
    """The length of each step for gradients of each size, (steps, sizes)."""
    sizes = jnp.asarray(SIZES)

    def step(state: optax.OptState, sign: jax.Array) -> tuple[optax.OptState, jax.Array]:
        updates, state = optimizer.update(sign * sizes, state)
        return state, jnp.abs(jnp.asarray(updates))

    signs = jnp.where(jnp.arange(max(STEPS)) % 2, -1.0, 1.0)
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, optimizer.init(sizes), signs)[1])())


def draw(lengths: dict[str, np.ndarray], path: Path) -> None:
    """One panel for each number of steps."""
    figure, panels = plt.subplots(
        1, len(STEPS), figsize=(11, 4.5), sharey=True, layout="constrained"
    )
    for axes, steps in zip(panels, STEPS, strict=True):
        for name, length in lengths.items():
            _, color, line = RULES[name]
            axes.loglog(SIZES, length[steps - 1], color=color, linestyle=line, label=name)
        axes.set(xlabel="size of the gradients", title=f"step {steps}", ylim=(1e-6, 3))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("length of the step, in learning rates")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Where eps stands decides which gradients are too small to count")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    return flags.parser(__doc__, "which_rmsprop.png").parse_args()


def main() -> None:
    """Draws the picture, and prints where each rule has lost half of its step."""
    args = parse_arguments()
    lengths = {name: step_lengths(optimizer) for name, (optimizer, *_) in RULES.items()}
    for name, length in lengths.items():
        halved = [SIZES[length[steps - 1] > 0.5].min() for steps in STEPS]
        print(f"{name:45} half a learning rate at |g| = {halved[0]:.0e}, later {halved[1]:.0e}")
    draw(lengths, args.output)
    print(f"which_rmsprop: {jax.devices()[0].device_kind}; picture in {args.output}")


if __name__ == "__main__":
    main()
