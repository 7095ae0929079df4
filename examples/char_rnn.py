"""Trains a recurrent network to predict the next character, with Graves' RMSprop.

The text is Python's own help from the standard library (`pydoc_data.topics`), with every
paragraph once; nothing is downloaded. The last tenth is held out. The baseline is the best
n-gram model, whose length is chosen on the held-out text itself. A compressor is printed,
too: unlike the network, it keeps learning while it reads the held-out text, and needs
fewer bits. At the end the network writes some help of its own.
"""

import argparse
import lzma
import time
from collections import Counter
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import flags
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from rmsprop_jax import dialects

WIDTH = 128
STREAMS = 16  # read side by side
WINDOW = 64  # characters per step, through which gradients flow back
PARTS = 4  # of an epoch, each one compiled scan
LONGEST = 6  # n-gram; the best is shorter
Carry = tuple[jax.Array, jax.Array]


class Text(NamedTuple):
    """The text in the order in which it is read; characters are indices into the alphabet."""

    alphabet: list[str]
    training: np.ndarray
    held_out: np.ndarray


class History(NamedTuple):
    """Bits per character: of each step, and on the held-out text after each of ``steps``."""

    training: list[float]
    steps: list[int]
    held_out: list[float]


class Network(nnx.Module):
    """Long short-term memory, one layer: 100 000 parameters."""

    def __init__(self, size: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(size, 32, rngs=rngs)
        self.cell = nnx.OptimizedLSTMCell(32, WIDTH, rngs=rngs)
        self.output = nnx.Linear(WIDTH, size, rngs=rngs)

    def __call__(self, carry: Carry, characters: jax.Array) -> tuple[Carry, jax.Array]:
        """The carry after (time, streams) characters, and logits of each one's successor."""
        carry, hidden = jax.lax.scan(self.cell, carry, self.embedding(characters))
        return carry, self.output(hidden)


def load() -> Text:
    """Python's help. Topics quote each other, so only the first copy of a paragraph is kept."""
    paragraphs = "\n\n".join(topics.values()).split("\n\n")
    characters = np.array(list("\n\n".join(dict.fromkeys(paragraphs))))
    alphabet, text = np.unique(characters, return_inverse=True)
    training, held_out = np.split(text.astype(np.int32), [len(text) * 9 // 10])
    return Text(alphabet.tolist(), training, held_out)


def side_by_side(text: np.ndarray) -> np.ndarray:
    """The text cut into streams, (time, streams); each ends with the next one's start."""
    length = (len(text) - 1) // STREAMS
    return np.stack([text[i * length : (i + 1) * length + 1] for i in range(STREAMS)], axis=1)


def windows(text: np.ndarray) -> jax.Array:
    """The streams in windows, (parts, windows, time, streams), each overlapping by one."""
    streams = side_by_side(text)
    count = (len(streams) - 1) // WINDOW // PARTS * PARTS
    starts = np.arange(count).reshape(PARTS, -1, 1) * WINDOW
    return jnp.asarray(streams[starts + np.arange(WINDOW + 1)])


def zeros(streams: int) -> Carry:
    """The network's memory at the start."""
    return jnp.zeros((streams, WIDTH)), jnp.zeros((streams, WIDTH))


def optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Graves' decay, momentum and eps, and a larger learning rate: his 1e-4 is for long runs.

    He clips derivatives inside the network; here each weight's gradient is clipped.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.clip(1.0), dialects.graves(schedule))


def train(text: Text, args: argparse.Namespace) -> tuple[Network, History]:
    """Reads the text window by window; the memory is carried from one to the next."""
    graph, params = nnx.split(Network(len(text.alphabet), nnx.Rngs(args.seed)), nnx.Param)
    parts, held_out = windows(text.training), jnp.asarray(side_by_side(text.held_out))
    steps = parts.shape[1]
    graves = optimizer(args.learning_rate, args.epochs * PARTS * steps)
    state = graves.init(params)

    def loss_of(params: nnx.State, carry: Carry, window: jax.Array) -> tuple[jax.Array, Any]:
        bits, carry = bits_of(nnx.merge(graph, params), carry, window)
        # In nats, and the sum over the window, as in the paper: eps suits gradients of that size.
        return bits.sum(axis=0).mean() * np.log(2), (bits.mean(), carry)

    def step(carried: Any, window: jax.Array) -> tuple[Any, jax.Array]:
        params, state, carry = carried
        gradients, (bits, carry) = jax.grad(loss_of, has_aux=True)(params, carry, window)
        updates, state = graves.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state, carry), bits

    @partial(jax.jit, donate_argnums=0)
    def read(carried: Any, windows: jax.Array) -> tuple[Any, jax.Array]:
        return jax.lax.scan(step, carried, windows)

    @jax.jit
    def held_out_bits(params: nnx.State) -> jax.Array:
        return bits_of(nnx.merge(graph, params), zeros(STREAMS), held_out)[0]

    history = History([], [], [])
    with tqdm(total=args.epochs * PARTS, unit="quarter") as bar:
        for _ in range(args.epochs):
            carry = zeros(STREAMS)
            for part in parts:
                (params, state, carry), bits = read((params, state, carry), part)
                history.training.extend(bits.tolist())
                history.steps.append(len(history.training))
                history.held_out.append(float(held_out_bits(params).mean()))
                bar.set_postfix(held_out=f"{history.held_out[-1]:.3f} bits")
                bar.update()
    return nnx.merge(graph, params), history


def bits_of(network: Network, carry: Carry, text: jax.Array) -> tuple[jax.Array, Carry]:
    """The bits that each character but the first costs, (time - 1, streams), and the carry."""
    carry, logits = network(carry, text[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[1:])
    return losses / np.log(2), carry


def ngram_bits(text: Text) -> list[float]:
    """Bits per held-out character of n-gram models, n from 1, smoothed as Witten and Bell do.

    The more kinds of successors a model has seen, the more it falls back on the shorter one.
    """
    training, held_out = (
        "".join(text.alphabet[c] for c in part) for part in (text.training, text.held_out)
    )
    chances, bits = [1 / len(text.alphabet)] * len(held_out), []
    for n in range(1, LONGEST + 1):
        counts = Counter(training[i : i + n] for i in range(len(training) - n + 1))
        seen, kinds = Counter(), Counter()
        for gram, count in counts.items():
            seen[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        characters = training[len(training) - n + 1 :] + held_out
        for i, shorter in enumerate(chances):
            gram = characters[i : i + n]
            before = gram[:-1]
            if before in seen:
                chances[i] = (counts[gram] + kinds[before] * shorter) / (
                    seen[before] + kinds[before]
                )
        bits.append(-float(np.log2(chances).mean()))
    return bits


def lzma_bits(text: Text) -> float:
    """Bits per held-out character that lzma adds after it has read the training text."""
    everything = np.concatenate([text.training, text.held_out])
    before, after = (
        len(lzma.compress("".join(text.alphabet[c] for c in part).encode(), preset=9))
        for part in (text.training, everything)
    )
    return (after - before) * 8 / len(text.held_out)


def sample(network: Network, alphabet: list[str], seed: int, length: int = 400) -> str:
    """A text of the network's own, each character drawn at temperature 0.7."""
    graph, params = nnx.split(network)

    @jax.jit
    def write(params: Any, keys: jax.Array) -> jax.Array:
        def step(carried: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            carry, character = carried
            carry, logits = nnx.merge(graph, params)(carry, character[None])
            character = jax.random.categorical(key, logits[0] / 0.7)
            return (carry, character), character[0]

        start = jnp.full(1, alphabet.index("\n"))
        return jax.lax.scan(step, (zeros(1), start), keys)[1]

    keys = jax.random.split(jax.random.key(seed), length)
    return "".join(alphabet[c] for c in write(params, keys))


def draw(
    history: History, ngrams: list[float], passage: tuple[str, np.ndarray], path: Path
) -> None:
    """Bits by step beside the baselines, and the cost of each character in a held-out passage."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 5), width_ratios=(4, 5), layout="constrained"
    )
    training = np.reshape(history.training, (len(history.steps), -1)).mean(axis=1)
    left.plot(history.steps, training, color="#0072B2", linestyle="--", label="training")
    left.plot(history.steps, history.held_out, color="#D55E00", label="held-out")
    best = int(np.argmin(ngrams))
    left.axhline(ngrams[best], color="#009E73", linestyle="-.", label=f"best n-gram ({best + 1})")
    left.axhline(ngrams[0], color="#555555", linestyle=":", label="unigram")
    left.set(xlabel="step", ylabel="bits per character", title="what the next character costs")
    left.set_ylim(1, 5)
    left.grid(alpha=0.3)
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.88))

    lines, bits = passage[0].split("\n"), iter(passage[1])
    costs = np.zeros((len(lines), max(map(len, lines)) + 1))
    for y, line in enumerate(lines):
        for x, character in enumerate(line + "\n"):
            costs[y, x] = next(bits, 0.0)
            right.text(
                x, y, character.strip(), family="monospace", size=8, ha="center", va="center",
                parse_math=False, color="white" if costs[y, x] > 6 else "black",
            )  # fmt: skip
    shades = right.imshow(costs, cmap="Oranges", vmin=0, vmax=10, aspect="auto")
    right.set(title="a held-out passage: where the network is surprised", xticks=[], yticks=[])
    figure.colorbar(shades, ax=right, label="bits", shrink=0.8)
    figure.suptitle("A small LSTM reads Python's help, trained with Graves' RMSprop")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def find_passage(network: Network, text: Text) -> tuple[str, np.ndarray]:
    """Twenty lines of the first held-out stream, and the bits that each character costs."""
    stream = side_by_side(text.held_out)[:, :1]
    bits, _ = bits_of(network, zeros(1), jnp.asarray(stream))
    characters = np.array(text.alphabet)[stream[1:, 0]]
    first, last = np.flatnonzero(characters == "\n")[[0, 20]]
    return "".join(characters[first + 1 : last]), np.asarray(bits)[first + 1 : last, 0]


def parse_arguments() -> argparse.Namespace:
    """The flags, each checked."""
    parser = flags.parser(__doc__, "char_rnn.png")
    parser.add_argument("--epochs", type=flags.whole_number, default=8, help="passes over the text")
    parser.add_argument(
        "--learning-rate",
        type=flags.number_below(100),
        default=3e-3,
        help="at the start; a cosine schedule decays it to zero",
    )
    return parser.parse_args()


def main() -> None:
    """Trains, draws and prints the result."""
    args = parse_arguments()
    began = time.perf_counter()
    text = load()
    ngrams = ngram_bits(text)
    network, history = train(text, args)
    draw(history, ngrams, find_passage(network, text), args.output)
    print(f"A text of its own:\n\n{sample(network, text.alphabet, args.seed).strip()}\n")
    for n, bits in enumerate(ngrams, start=1):
        print(f"{n}-gram: {bits:.2f} bits per held-out character")
    print(f"lzma: {lzma_bits(text):.2f}, learning as it goes")
    print(
        f"char_rnn: {history.held_out[-1]:.2f} bits per character on {len(text.held_out)} held-out "
        f"characters, best n-gram {min(ngrams):.2f}, unigram {ngrams[0]:.2f}; "
        f"{jax.devices()[0].device_kind}, {time.perf_counter() - began:.0f} s; "
        f"picture in {args.output}"
    )


if __name__ == "__main__":
    main()
