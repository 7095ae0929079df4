"""Checkpoint files of TensorFlow 1 and 2: every variable by name."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsprop_jax.interop._files import Source, replacing


def read(prefix: Source) -> dict[str, Any]:
    """The variables of the checkpoint whose files begin with ``prefix``."""
    import tensorflow as tf

    prefix = os.fspath(prefix)
    if os.path.isdir(prefix):
        latest = tf.train.latest_checkpoint(prefix)
        example = f", such as {latest}" if latest else ""
        raise ValueError(f"{prefix} is a folder: pass the prefix of a checkpoint{example}")
    if prefix.endswith(".index") or ".data-" in prefix:
        short = prefix.removesuffix(".index").partition(".data-")[0]
        raise ValueError(f"{prefix} is one file of a checkpoint: pass its prefix, {short}")
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:150]
        raise ValueError(f"{prefix} is not a complete TensorFlow checkpoint: {reason}") from error


def write(variables: Mapping[str, Any], prefix: Source) -> None:
    """Replaces the files of a checkpoint, all of them or none."""
    import tensorflow as tf

    arrays = {name: np.asarray(x) for name, x in variables.items()}
    # The file `.data` is written beside the `.index`, and moved with it.
    with (
        replacing(f"{os.fspath(prefix)}.index") as [index],
        # Fed, and in a graph of its own: a graph's constants are limited to two gigabytes.
        tf.Graph().as_default(),
        tf.compat.v1.Session() as session,
    ):
        tensors = [tf.compat.v1.placeholder(x.dtype, x.shape) for x in arrays.values()]
        save = tf.raw_ops.SaveV2(
            prefix=os.fspath(index).removesuffix(".index"),
            tensor_names=list(arrays),
            shape_and_slices=[""] * len(arrays),
            tensors=tensors,
        )
        try:
            session.run(save, dict(zip(tensors, arrays.values(), strict=True)))
        except tf.errors.OpError as error:
            raise OSError(str(error).partition("\n")[0]) from error
