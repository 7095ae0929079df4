"""Every example is listed in examples/README.md and measures correctly. `.ci/run` runs them."""

from pathlib import Path

import char_rnn
import matplotlib.image
import numpy as np
import pytest
import wgan

FOLDER = Path(__file__).parents[2] / "examples"
# Imported by examples, or run before one.
SHARED = ("checkpoints", "flags", "train_in_torch")
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_is_listed_with_its_picture(script):
    text = (FOLDER / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| [`{script.name}`]"))
    assert len(row.split("|")[2]) > 40
    assert f"]({script.stem}.png)" in text
    height, width, _ = matplotlib.image.imread(FOLDER / f"{script.stem}.png").shape
    assert min(height, width) > 300


def test_nothing_else_is_listed():
    text = (FOLDER / "README.md").read_text()
    assert text.count("| [`") == text.count("![") == len(SCRIPTS)


def test_ngram_models_are_probabilities():
    """For each length of context, the probabilities of all possible successors add up to one."""
    alphabet, training = list("abcd"), np.array([0, 1, 0, 2, 0, 1, 3, 1, 0, 0, 1])
    chances = np.array(
        [
            2.0 ** -np.array(char_rnn.ngram_bits(char_rnn.Text(alphabet, training, np.array([c]))))
            for c in range(4)
        ]
    )
    assert chances.shape == (4, char_rnn.LONGEST)
    np.testing.assert_allclose(chances.sum(axis=0), 1)
    # Witten and Bell by hand: 4 of 11 characters are b, and 4 kinds have been seen.
    np.testing.assert_allclose(chances[1, 0], (4 + 4 / 4) / (11 + 4))


def test_a_longer_context_learns_a_repetition():
    text = np.array([0, 1, 2, 3] * 50)
    bits = char_rnn.ngram_bits(char_rnn.Text(list("abcd"), text, text[:20]))
    assert bits[0] == pytest.approx(2, abs=0.01)
    assert bits[1] < 0.1


def test_windows_overlap_by_one_and_lose_little():
    text = np.arange(char_rnn.STREAMS * (char_rnn.WINDOW * char_rnn.PARTS * 3 + 5))
    windows = np.asarray(char_rnn.windows(text))
    assert windows.shape == (char_rnn.PARTS, 3, char_rnn.WINDOW + 1, char_rnn.STREAMS)
    inputs = windows[:, :, :-1].transpose(3, 0, 1, 2).reshape(char_rnn.STREAMS, -1)
    assert (np.diff(inputs, axis=1) == 1).all()
    assert (windows[:, :, 1:] == windows[:, :, :-1] + 1).all()


def test_energy_distance():
    zeros, ones = np.zeros((5, 4)), np.ones((3, 4))
    assert wgan.energy_distance(zeros, zeros) == 0
    assert wgan.energy_distance(zeros, ones) == pytest.approx(4)
    # One set covers both points, the other only one.
    both = np.concatenate([np.zeros((2, 4)), np.ones((2, 4))])
    assert wgan.energy_distance(zeros, both) == pytest.approx(2 * 1 - 1)


def test_gaussian_has_the_moments_of_the_digits():
    digits = np.random.default_rng(0).normal(0.5, 0.05, (20_000, 3))
    digits[:, 1] = digits[:, 0]
    drawn = wgan.gaussian(digits, 0)
    np.testing.assert_allclose(drawn.mean(axis=0), digits.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(digits.T), atol=1e-4)
