"""RMSprop in float64 NumPy, written from its definitions. Slow and simple on purpose.

Sources:
  [H] Hinton, Srivastava, Swersky: Neural Networks for Machine Learning, lecture 6e, 2012
      (slide "rmsprop": MeanSquare(w, t) = 0.9 MeanSquare(w, t-1) + 0.1 (dE/dw)^2).
  [G] Graves: Generating Sequences With Recurrent Neural Networks, 2013, eq. 38-41.
  [K] Kingma, Ba: Adam, 2015, section 3 (bias correction).
  [N] Sutskever et al.: On the importance of initialization and momentum, 2013 (Nesterov).
  [L] Loshchilov, Hutter: Decoupled Weight Decay Regularization, 2019, algorithm 2.
  [T] torch.optim.RMSprop, the algorithm in its documentation.
  [P] Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks,
      2013, algorithm 1 (norm clipping); keras.optimizers.Optimizer for whose norm it is.
  [M] Mnih et al.: Human-level control through deep reinforcement learning, 2015, table 1.

An exponential moving average is computed here by its definition: a weighted mean of all
gradients so far. The variance is then the weighted mean of squared distances from that mean,
so nothing cancels, at any precision.
"""

import numpy as np


def weights(decay, t):
    """The weights of gradients 1 to t in a moving average, and the weight of its start."""
    ages = np.arange(t)[::-1]
    return (1 - decay) * decay**ages, decay**t


def mean_square(gradients, decay, start=0.0, bias_correction=False):
    """[H] The average of |g|^2 after all ``gradients``, an array (steps, ...)."""
    w, rest = weights(decay, len(gradients))
    total = rest * start + np.tensordot(w, abs(gradients) ** 2, 1)
    return total / (1 - rest) if bias_correction else total  # [K]


def mean(gradients, decay, bias_correction=False):
    """[G, eq. 39] The average of g, from a start at zero."""
    w, rest = weights(decay, len(gradients))
    total = np.tensordot(w, gradients, 1)
    return total / (1 - rest) if bias_correction else total


def variance(gradients, decay, start=0.0, bias_correction=False):
    """[G, eq. 40] The average of |g|^2 minus the squared average of g.

    That is the weighted variance of the gradients, in which the start counts as a gradient
    of zero, unless bias correction removes it.
    """
    w, rest = weights(decay, len(gradients))
    m = mean(gradients, decay, bias_correction)
    total = rest * start + np.tensordot(w, abs(gradients - m) ** 2, 1)
    if bias_correction:
        return total / (1 - rest)
    return total + rest * abs(m) ** 2


def normalize(g, second_moment, eps, eps_in_sqrt):
    """[H], [G, eq. 41] The gradient over the root; zero over zero is zero."""
    root = np.sqrt(second_moment + eps) if eps_in_sqrt else np.sqrt(second_moment) + eps
    return np.divide(g, root, out=np.zeros_like(g), where=root != 0)


def scaled_gradients(
    gradients,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    bias_correction=False,
):
    """The updates of scale_by_rms or scale_by_stddev for ``gradients``, an array (steps, ...)."""
    second_moment = variance if centered else mean_square
    return np.stack(
        [
            normalize(
                gradients[t],
                second_moment(gradients[: t + 1], decay, initial_scale, bias_correction),
                eps,
                eps_in_sqrt,
            )
            for t in range(len(gradients))
        ]
    )


def rmsprop(
    gradients,
    params,
    learning_rate,
    *,
    momentum=None,
    nesterov=False,
    weight_decay=0.0,
    **options,
):
    """The updates of rmsprop for fixed ``gradients``, starting at ``params``."""
    updates = []
    buffer = np.zeros_like(params)
    for t, x in enumerate(scaled_gradients(gradients, **options)):
        rate = learning_rate(t) if callable(learning_rate) else learning_rate
        step = rate * x
        if momentum is not None:
            buffer = momentum * buffer + step
            step = momentum * buffer + step if nesterov else buffer  # [N]
        updates.append(-step - rate * weight_decay * params)  # [L]
        params = params + updates[-1]
    return np.stack(updates)


# The dialects. Each takes gradients {leaf: (steps, n)}, parameters {leaf: (n,)}, and then the
# arguments of its source, with their names, order and defaults.


def of_each_leaf(function, gradients, params, *args, **options):
    """The updates of all leaves, {leaf: (steps, n)}."""
    return {k: function(gradients[k], params[k], *args, **options) for k in params}


def pytorch(
    gradients,
    params,
    lr=1e-2,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
    maximize=False,
):
    """[T] `torch.optim.RMSprop`."""
    options = (lr, alpha, eps, weight_decay, momentum, centered, maximize)
    return of_each_leaf(pytorch_leaf, gradients, params, *options)


def pytorch_leaf(gradients, params, lr, alpha, eps, weight_decay, momentum, centered, maximize):
    """[T] The updates of one leaf."""
    second_moment = variance if centered else mean_square
    seen, updates = [], []
    buffer = np.zeros_like(params)
    for t, g in enumerate(gradients):
        seen.append((-g if maximize else g) + weight_decay * params)
        x = normalize(seen[-1], second_moment(np.stack(seen), alpha), eps, eps_in_sqrt=False)
        buffer = momentum * buffer + x
        updates.append(-(lr(t) if callable(lr) else lr) * buffer)
        params = params + updates[-1]
    return np.stack(updates)


def keras_clipped(gradients, clipnorm=None, clipvalue=None, global_clipnorm=None):
    """[P] Gradients {leaf: (steps, n)} as Keras clips them; at most one limit is given."""
    norms = {k: np.linalg.norm(g, axis=1, keepdims=True) for k, g in gradients.items()}
    if clipvalue is not None:
        return {k: np.clip(g, -clipvalue, clipvalue) for k, g in gradients.items()}
    if clipnorm is not None:
        return {k: g / np.maximum(1, norms[k] / clipnorm) for k, g in gradients.items()}
    if global_clipnorm is not None:
        norm = np.sqrt(sum(n**2 for n in norms.values()))
        return {k: g / np.maximum(1, norm / global_clipnorm) for k, g in gradients.items()}
    return gradients


def keras(
    gradients,
    params,
    learning_rate=1e-3,
    rho=0.9,
    momentum=0.0,
    epsilon=1e-7,
    centered=False,
    weight_decay=None,
    clipnorm=None,
    clipvalue=None,
    global_clipnorm=None,
):
    """`keras.optimizers.RMSprop` of Keras 3, by its documentation."""
    return of_each_leaf(
        rmsprop,
        keras_clipped(gradients, clipnorm, clipvalue, global_clipnorm),
        params,
        learning_rate,
        decay=rho,
        eps=epsilon,
        centered=centered,
        momentum=momentum,
        weight_decay=weight_decay or 0.0,
    )


def tensorflow_v1(
    gradients, params, learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False
):
    """`tf.compat.v1.train.RMSPropOptimizer`, by its documentation: the average starts at one."""
    options = {"decay": decay, "eps": epsilon, "centered": centered, "momentum": momentum}
    return of_each_leaf(rmsprop, gradients, params, learning_rate, initial_scale=1.0, **options)


def tf_keras(
    gradients,
    params,
    learning_rate=1e-3,
    rho=0.9,
    momentum=0.0,
    epsilon=1e-7,
    centered=False,
    clipnorm=None,
    clipvalue=None,
    global_clipnorm=None,
    decay=0.0,
):
    """`tf.keras.optimizers.legacy.RMSprop`, by its code: eps inside the root with momentum."""

    def rate(t):
        initial = learning_rate(t) if callable(learning_rate) else learning_rate
        return initial / (1 + decay * t)

    gradients = keras_clipped(gradients, clipvalue=clipvalue)
    return of_each_leaf(
        rmsprop,
        keras_clipped(gradients, clipnorm, None, global_clipnorm),
        params,
        rate,
        decay=rho,
        eps=epsilon or 1e-7,
        eps_in_sqrt=momentum > 0,
        centered=centered,
        momentum=momentum,
    )


def timm(
    gradients,
    params,
    lr=1e-2,
    alpha=0.9,
    eps=1e-10,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
    decoupled_decay=False,
    lr_in_momentum=True,
):
    """`timm.optim.RMSpropTF`, by its docstring: torch's, but v starts at 1, eps and rate inside."""
    options = (lr, alpha, eps, weight_decay, momentum, centered, decoupled_decay, lr_in_momentum)
    return of_each_leaf(timm_leaf, gradients, params, *options)


def timm_leaf(
    gradients, params, lr, alpha, eps, weight_decay, momentum, centered, decoupled, lr_in_momentum
):
    """The updates of one leaf."""
    second_moment = variance if centered else mean_square
    seen, updates = [], []
    buffer = np.zeros_like(params)
    for t, g in enumerate(gradients):
        rate = lr(t) if callable(lr) else lr
        seen.append(g if decoupled else g + weight_decay * params)
        x = normalize(seen[-1], second_moment(np.stack(seen), alpha, 1.0), eps, eps_in_sqrt=True)
        buffer = momentum * buffer + (rate * x if lr_in_momentum else x)
        step = -buffer if lr_in_momentum else -rate * buffer
        updates.append(step - rate * weight_decay * params if decoupled else step)
        params = params + updates[-1]
    return np.stack(updates)


def stable_baselines3(
    gradients,
    params,
    lr=1e-2,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
):
    """`RMSpropTFLike` of Stable-Baselines3, by its code: torch's, but v starts at 1, eps inside."""
    options = (lr, alpha, eps, weight_decay, momentum, centered)
    return timm(gradients, params, *options, lr_in_momentum=False)


def fastai(gradients, params, lr, mom=0.0, sqr_mom=0.99, eps=1e-8, wd=0.0, decouple_wd=True):
    """`fastai.optimizer.RMSProp`, by its steps: momentum of gradients, then the division."""
    return of_each_leaf(fastai_leaf, gradients, params, lr, mom, sqr_mom, eps, wd, decouple_wd)


def fastai_leaf(gradients, params, lr, mom, sqr_mom, eps, wd, decouple_wd):
    """The updates of one leaf."""
    seen, updates = [], []
    buffer = np.zeros_like(params)
    for t, g in enumerate(gradients):
        rate = lr(t) if callable(lr) else lr
        seen.append(g if decouple_wd else g + wd * params)
        buffer = mom * buffer + seen[-1]
        x = normalize(buffer, mean_square(np.stack(seen), sqr_mom), eps, eps_in_sqrt=False)
        updates.append(-rate * x - (rate * wd * params if decouple_wd else 0))
        params = params + updates[-1]
    return np.stack(updates)


def hinton(gradients, params, learning_rate, decay=0.9):
    """[H] The slide's rule, without eps."""
    return of_each_leaf(rmsprop, gradients, params, learning_rate, decay=decay, eps=0.0)


def graves(gradients, params, learning_rate=1e-4, decay=0.95, momentum=0.9, eps=1e-4):
    """[G] Handwriting synthesis: centred, with momentum."""
    options = {"decay": decay, "eps": eps, "centered": True, "momentum": momentum}
    return of_each_leaf(rmsprop, gradients, params, learning_rate, **options)


def dqn(gradients, params, learning_rate=2.5e-4, decay=0.95, eps=0.01):
    """[M] Atari: centred, without momentum."""
    options = {"decay": decay, "eps": eps, "centered": True}
    return of_each_leaf(rmsprop, gradients, params, learning_rate, **options)


DIALECTS = {
    f.__name__: f
    for f in (
        pytorch, keras, tf_keras, tensorflow_v1, timm, stable_baselines3, fastai,
        hinton, graves, dqn,
    )
}  # fmt: skip
