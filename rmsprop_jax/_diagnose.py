"""What an optimizer's state says about training, leaf by leaf."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import DictKey, keystr, tree_leaves_with_path
from jax.typing import ArrayLike

from rmsprop_jax import _second_moment, _storage, _validate, _validate_trees
from rmsprop_jax._numerics import divide, widen

# Percentiles are estimated from about this many elements of a leaf, evenly spaced.
_SAMPLE = 2**16


class Diagnosis(NamedTuple):
    """What `diagnose` says about one leaf: float32 scalars, None where they do not apply.

    Attributes:
      gradient_rms: Root mean square of the recent gradients: the root of the mean of v.
      root_v_5: 5th percentile of sqrt(v). The effective learning rate, ``learning_rate / sqrt(v)``,
        is larger in 5 % of the elements only.
      root_v_50: Median of sqrt(v).
      root_v_95: 95th percentile of sqrt(v).
      eps_share: Fraction of elements where eps is the larger part of the denominator.
      update_rms: Root mean square of the update.
      update_over_param: ``update_rms`` over the root mean square of the parameter.
      lost_share: Fraction of the elements of a bfloat16 parameter whose update is lost by rounding
        to nearest, because it is less than half the spacing.
      zero_share: Fraction of an 8-bit average that is zero: too small for the leaf's scale.
      top_share: Fraction of an 8-bit average that is clipped: too large for the leaf's scale.
      nonfinite: How many values of v, parameter and update are NaN or infinite.
    """

    gradient_rms: Any
    root_v_5: Any
    root_v_50: Any
    root_v_95: Any
    eps_share: Any
    update_rms: Any
    update_over_param: Any
    lost_share: Any
    zero_share: Any
    top_share: Any
    nonfinite: Any


class Diagnoses(dict[str, Diagnosis]):
    """The `Diagnosis` of each leaf, by its path. Prints as a table."""

    def as_scalars(self) -> dict[str, float]:
        """The numbers under names such as ``"dense/kernel/gradient_rms"``, for a logger."""
        return {
            f"{path}/{name}".strip("/"): float(value)
            for path, diagnosis in jax.device_get(dict(self)).items()
            for name, value in diagnosis._asdict().items()
            if value is not None
        }

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(dict(self))
        if any(isinstance(x, Tracer) for x in leaves):
            return f"Diagnoses({dict(self)})"
        rows = [_table_row(path, x) for path, x in jax.device_get(dict(self)).items()]
        table = [("leaf", *_COLUMNS), *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        )


# Headings of the table: the fields of `Diagnosis`, abbreviated.
_COLUMNS = (
    "rms(g)",
    "sqrt(v) 5%",
    "50%",
    "95%",
    "eps",
    "rms(u)",
    "/rms(w)",
    "lost",
    "zero",
    "top",
    "not finite",
)


def _table_row(path: str, diagnosis: Diagnosis) -> tuple[str, ...]:

    def cell(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name.endswith("_share"):
            return f"{float(value):.0%}"
        return f"{int(value)}" if name == "nonfinite" else f"{float(value):.2g}"

    return (path or "(root)", *(cell(*item) for item in diagnosis._asdict().items()))


jax.tree_util.register_pytree_with_keys(
    Diagnoses,
    lambda x: (tuple((DictKey(path), leaf) for path, leaf in x.items()), tuple(x)),
    lambda paths, leaves: Diagnoses(zip(paths, leaves, strict=True)),
)


def diagnose(
    state: Any,
    params: Any,
    updates: Any = None,
    *,
    eps: ArrayLike = 1e-8,
    eps_in_sqrt: bool = True,
) -> Diagnoses:
    r"""What a state says about training, leaf by leaf: print it, or log it.

    It reads the state, the parameters and the updates once. Percentiles are estimated from about
    65,000 evenly spaced elements of each leaf.

    Args:
      state: As in `second_moment`.
      params: The parameters, or an ``nnx.State`` of them.
      updates: What the optimizer returned, if you want to see how large its steps are.
      eps: :math:`\epsilon` of the optimizer, which its state does not hold.
      eps_in_sqrt: Whether eps is inside the square root.

    Returns:
      A dictionary from the path of each leaf, such as ``"dense/kernel"``, to its `Diagnosis`.
      ``print`` shows a table, ``as_scalars()`` returns a flat dictionary for a logger. It is a
      pytree, so `diagnose` may be part of a compiled step. Empty leaves, and leaves that another
      optimizer trains, are left out.

    Raises:
      ValueError: If ``state`` has no average of squares, or ``params`` or ``updates`` do not have
        its structure and shapes.

    Example:
      Gradients of 1e-6 are far below the default eps, which acts like 1e-4 outside the root: all
      steps are a hundredth of what they should be.

      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import diagnose, rmsprop
      >>> params = {"dense": {"kernel": jnp.ones((2, 3))}}
      >>> gradients = {"dense": {"kernel": jnp.full((2, 3), 1e-6)}}
      >>> optimizer = rmsprop(0.1)
      >>> updates, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> diagnoses = diagnose(state, params, updates)
      >>> print(f"{diagnoses['dense/kernel'].eps_share:.0%}")
      100%
    """
    _validate.nonnegative(eps=eps)
    _validate.flag(eps_in_sqrt=eps_in_sqrt)
    found = Diagnoses()
    params, updates = _by_path(params), _by_path(updates)
    for averages in _second_moment.averages(state):
        codes = _by_path(averages.codes) if _storage.is_quantized(averages) else {}
        top = _by_path(_storage.largest_codes(averages)) if codes else {}
        for path, v in _by_path(_second_moment.values(averages)).items():
            if v.size:
                param, update = (
                    _leaf_at(path, x, v, name)
                    for x, name in ((params, "params"), (updates, "updates"))
                )
                found[path] = Diagnosis(
                    **_average_fields(v, eps, eps_in_sqrt),
                    **_update_fields(param, update),
                    **_code_fields(codes.get(path), top.get(path)),
                    nonfinite=sum(
                        jnp.sum(~jnp.isfinite(x)) for x in (v, param, update) if x is not None
                    ),
                )
    return found


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, such as ``"dense/kernel"``."""
    return {
        keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in tree_leaves_with_path(tree)
    }


def _leaf_at(path: str, leaves: dict[str, Any], v: jax.Array, name: str) -> Any:
    """The leaf at the path of an average; None if no leaves were given."""
    if not leaves:
        return None
    if path not in leaves:
        # `dialects.pytorch` keeps two averages for a complex parameter.
        parent, _, component = path.rpartition("/")
        if component in ("real", "imaginary") and jnp.iscomplexobj(leaves.get(parent)):
            return {"real": jnp.real, "imaginary": jnp.imag}[component](leaves[parent])
        raise ValueError(
            f"{name} must have a leaf at {path!r}, where the state has an average; its leaves are "
            f"{_validate_trees.few(list(leaves))}"
        )
    _validate_trees.shape(f"{name} at {path!r}", leaves[path], v, like="the state")
    return jnp.asarray(leaves[path])


def _average_fields(v: jax.Array, eps: ArrayLike, eps_in_sqrt: bool) -> dict[str, jax.Array]:
    root = jnp.sqrt(v)
    low, median, high = jnp.quantile(_sample(root), jnp.array([0.05, 0.5, 0.95]))
    return {
        "gradient_rms": jnp.sqrt(jnp.mean(v)),
        "root_v_5": low,
        "root_v_50": median,
        "root_v_95": high,
        "eps_share": jnp.mean(eps > (v if eps_in_sqrt else root)),
    }


def _sample(x: jax.Array) -> jax.Array:
    """About `_SAMPLE` elements, evenly spaced and not all from one column."""
    stride = -(-x.size // _SAMPLE)
    while math.gcd(stride, x.size) > 1:
        stride += 1
    return x.ravel()[::stride]


def _update_fields(param: Any, update: Any) -> dict[str, Any]:
    if update is None:
        return {"update_rms": None, "update_over_param": None, "lost_share": None}
    rms = _rms(update)
    lost = None
    if param is not None and param.dtype == jnp.bfloat16:
        moved = (widen(param) + widen(update)).astype(param.dtype) != param
        lost = jnp.mean((update != 0) & ~moved)
    return {
        "update_rms": rms,
        "update_over_param": None if param is None else divide(rms, _rms(param)),
        "lost_share": lost,
    }


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(abs(widen(x)) ** 2))


def _code_fields(codes: Any, top: Any) -> dict[str, Any]:
    if codes is None:
        return {"zero_share": None, "top_share": None}
    zero = _storage.FORMATS[codes.dtype].zero
    return {"zero_share": jnp.mean(codes == zero), "top_share": jnp.mean(codes == top)}
