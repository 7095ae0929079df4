r"""Each framework's RMSprop, under that framework's own argument names and defaults.

RMSprop was a lecture slide, and every framework made its own version of it. With
:math:`g` the gradient, :math:`w` the parameter, :math:`\eta` the learning rate,
:math:`\lambda` the weight decay, and :math:`v` and :math:`m` the moving averages of
:math:`g^2` and :math:`g`:

================= ======= ============================================ ================ ==========
dialect           first v what divides g                               momentum buffer  weights
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
fastai            0       :math:`\sqrt{v} + \epsilon`                  before division  w -= η λ w
================= ======= ============================================ ================ ==========

With ``centered``, :math:`v - m^2` replaces :math:`v`. Learning rates may be schedules, functions
of the number of steps taken. Every dialect has this package's arithmetic: a variance that does not
cancel, and averages in at least float32, or with stochastic rounding if ``accumulator_dtype`` is
narrower. Arguments that do not change the numbers are left out (TensorFlow's ``use_locking``,
torch's ``capturable``), so pass the arguments after them by name.
"""

from rmsprop_jax.dialects._papers import dqn, graves, hinton
from rmsprop_jax.dialects._tensorflow import keras, tensorflow_v1, tf_keras
from rmsprop_jax.dialects._torch import fastai, pytorch, stable_baselines3, timm

# All dialects by name, for tests and tools that cover every one.
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
