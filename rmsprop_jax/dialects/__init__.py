r"""Each framework's RMSprop, under that framework's own argument names and defaults.

RMSprop was a lecture slide, and every framework made its own of it. With
:math:`g` the gradient, :math:`w` the parameter, :math:`\eta` the learning rate,
:math:`v` the moving average of :math:`g^2` and :math:`m` that of :math:`g`:

================= ======= ============================================ ================ ==========
dialect           v first what divides g                               momentum buffer  weights
================= ======= ============================================ ================ ==========
hinton            0       :math:`\sqrt{v}`                             -                -
graves            0       :math:`\sqrt{v - m^2 + \epsilon}`            holds η g        -
dqn               0       :math:`\sqrt{v - m^2 + \epsilon}`            -                -
pytorch           0       :math:`\sqrt{v} + \epsilon`                  holds g, then η  g += λ w
keras             0       :math:`\sqrt{v + \epsilon}`                  holds η g        w -= η λ w
tf_keras          0       :math:`\sqrt{v} + \epsilon`; with momentum   holds η g        -
                          :math:`\sqrt{v + \epsilon}`
tensorflow_v1     1       :math:`\sqrt{v + \epsilon}`                  holds η g        -
timm              1       :math:`\sqrt{v + \epsilon}`                  holds η g        g += λ w
stable_baselines3 1       :math:`\sqrt{v + \epsilon}`                  holds g, then η  g += λ w
fastai            0       :math:`\sqrt{v} + \epsilon`                  before dividing  w -= η λ w
================= ======= ============================================ ================ ==========

A centred one has :math:`v - m^2` instead of :math:`v`. Learning rates may be schedules,
functions of the steps taken. Every dialect keeps what is this package's own: a variance that
does not cancel, and averages in at least float32, or with stochastic rounding where
``accumulator_dtype`` is narrower. Arguments that do not change the numbers are left out
(TensorFlow's ``use_locking``, torch's ``capturable``), so pass what follows them by name.
"""

from rmsprop_jax.dialects._papers import dqn, graves, hinton
from rmsprop_jax.dialects._tensorflow import keras, tensorflow_v1, tf_keras
from rmsprop_jax.dialects._torch import fastai, pytorch, stable_baselines3, timm

# All of them, by name; what holds for every dialect is asked of these.
DIALECTS = {
    make.__name__: make
    for make in (
        pytorch, keras, tf_keras, tensorflow_v1, timm, stable_baselines3, fastai,
        hinton, graves, dqn,
    )
}  # fmt: skip

__all__ = [
    "DIALECTS",
    "dqn",
    "fastai",
    "graves",
    "hinton",
    "keras",
    "pytorch",
    "stable_baselines3",
    "tensorflow_v1",
    "tf_keras",
    "timm",
]
