"""The trajectory of each framework's own RMSprop on a problem of `trajectories`.

``options`` are the framework's own arguments. With ``schedule`` the learning rate falls as in
`trajectories.decaying`. A framework runs in float32, or with ``centered`` in float64: in float32
its variance, a difference, may cancel.
"""

from functools import partial

import keras
import numpy as np
import tensorflow.compat.v1 as tf
import tf_keras
import torch

from support.modules import module_alone
from support.trajectories import RATE_DECAY


def dtype_of(options):
    return "float64" if options.get("centered") else "float32"


def torch_path(make, options, gradients, params, schedule=False):
    dtype = getattr(torch, dtype_of(options))
    weights = {k: torch.tensor(w).to(dtype).requires_grad_() for k, w in params.items()}
    optimizer = make(weights.values(), **options)
    decay = RATE_DECAY if schedule else 1.0
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    taken = {k: [] for k in params}
    for t in range(len(gradients["w"])):
        for k, w in weights.items():
            w.grad = torch.tensor(gradients[k][t]).to(dtype)
        optimizer.step()
        scheduler.step()
        for k, w in weights.items():
            taken[k].append(w.detach().numpy().copy())
    return {k: np.stack(v) for k, v in taken.items()}


pytorch_path = partial(torch_path, torch.optim.RMSprop)
timm_path = partial(torch_path, module_alone("timm.optim.rmsprop_tf").RMSpropTF)
stable_baselines3_path = partial(
    torch_path,
    module_alone("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike,
)


def keras_path(options, gradients, params, schedule=False):
    dtype = dtype_of(options)
    weights = {k: keras.Variable(w, dtype=dtype) for k, w in params.items()}
    options = dict(options)
    if schedule:
        rate = options.pop("learning_rate")
        options["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(rate, 1, RATE_DECAY)
    optimizer = keras.optimizers.RMSprop(**options)
    optimizer.build(list(weights.values()))
    # Compiled, as `fit` runs it.
    apply = tf.function(optimizer.apply)
    taken = {k: [] for k in params}
    for t in range(len(gradients["w"])):
        apply([keras.ops.convert_to_tensor(gradients[k][t].astype(dtype)) for k in weights])
        for k, w in weights.items():
            taken[k].append(keras.ops.convert_to_numpy(w).copy())
    return {k: np.stack(v) for k, v in taken.items()}


def tf_keras_path(options, gradients, params, schedule=False):
    dtype = dtype_of(options)
    weights = {k: tf_keras.backend.variable(w, dtype=dtype) for k, w in params.items()}
    options = dict(options)
    if schedule:
        rate = options.pop("learning_rate")
        schedules = tf_keras.optimizers.schedules
        options["learning_rate"] = schedules.ExponentialDecay(rate, 1, RATE_DECAY)
    optimizer = tf_keras.optimizers.legacy.RMSprop(**options)
    taken = {k: [] for k in params}

    @tf.function
    def apply(gradients):
        optimizer.apply_gradients(zip(gradients, weights.values(), strict=True))

    for t in range(len(gradients["w"])):
        apply([tf.convert_to_tensor(gradients[k][t].astype(dtype)) for k in weights])
        for k, w in weights.items():
            taken[k].append(w.numpy())
    return {k: np.stack(v) for k, v in taken.items()}


def tensorflow_v1_path(options, gradients, params, schedule=False):
    dtype, options = dtype_of(options), dict(options)
    with tf.Graph().as_default(), tf.Session() as session:
        weights = {k: tf.Variable(w.astype(dtype), use_resource=True) for k, w in params.items()}
        fed = {k: tf.placeholder(dtype, w.shape) for k, w in params.items()}
        step = tf.train.create_global_step()
        if schedule:
            rate = options.pop("learning_rate")
            options["learning_rate"] = tf.train.exponential_decay(rate, step, 1, RATE_DECAY)
        optimizer = tf.train.RMSPropOptimizer(**options)
        update = optimizer.apply_gradients([(fed[k], weights[k]) for k in weights], step)
        session.run(tf.global_variables_initializer())
        taken = {k: [] for k in params}
        for t in range(len(gradients["w"])):
            session.run(update, {fed[k]: gradients[k][t] for k in fed})
            for k, w in session.run(weights).items():
                taken[k].append(w)
    return {k: np.stack(v) for k, v in taken.items()}


def tensorflow_v1_sparse_path(options, ids, values, table, schedule=False):
    """The same for an embedding whose gradient is ``values`` (steps, n, width) in rows ``ids``."""
    dtype, options = dtype_of(options), dict(options)
    with tf.Graph().as_default(), tf.Session() as session:
        weight = tf.Variable(table.astype(dtype), use_resource=True)
        rows = tf.placeholder(dtype, values.shape[1:])
        at = tf.placeholder("int64", ids.shape[1:])
        step = tf.train.create_global_step()
        if schedule:
            rate = options.pop("learning_rate")
            options["learning_rate"] = tf.train.exponential_decay(rate, step, 1, RATE_DECAY)
        gradient = tf.IndexedSlices(rows, at, table.shape)
        update = tf.train.RMSPropOptimizer(**options).apply_gradients([(gradient, weight)], step)
        session.run(tf.global_variables_initializer())
        taken = []
        for t in range(len(ids)):
            session.run(update, {rows: values[t], at: ids[t]})
            taken.append(session.run(weight))
    return np.stack(taken)
