"""Weights under the names and in the layout of PyTorch modules, and back, bit for bit.

The networks here name their layers as EDM and EDM2 do, so what is left is: a prefix, `kernel` and
`scale` against `weight`, dots against slashes, the order of axes, and constants that a PyTorch
module stores. `FAMILIES` has all of it, one row for each code base.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.base import param_names
from cmjax.types import Params

# Axes of a `kernel` as PyTorch has them: of a convolution (from HWIO to OIHW), of a linear map.
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
LEAVES = {"kernel": "weight", "scale": "weight"}


class Family(NamedTuple):
  """How one code base writes down a network.

  Attributes:
    prefix: of every name.
    filters: (pattern, layers) pairs: a module whose path the pattern matches stores its resampling
      filter as the constant `resample_filter` in each of those layers ("" is the module itself).
    others: a pattern of names in a file that belong to no network, such as those of a head that
      only a loss uses.
    renamed: (pattern, replacement) pairs from names that older files have to those of now.
    advice: what to do where tensors do not fit.
  """

  prefix: str = ""
  filters: tuple[tuple[str, tuple[str, ...]], ...] = ()
  others: str | None = None
  renamed: tuple[tuple[str, str], ...] = ()
  advice: str = "Give the network the options that it was trained with."


FAMILIES = {
  "edm": Family(
    prefix="model.",
    filters=((r".*_(?:down|up)(?=/)", ("/conv0", "/skip")), (r".*_aux_residual(?=/)", ("",))),
  ),
  "edm2": Family(prefix="unet.", others="^logvar_"),
  # Diffusers' AutoencoderKL. The attention's layers had other names before 2023.
  "autoencoder_kl": Family(
    renamed=(
      (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
      (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
      (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
      (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    advice="Give a file of diffusers' AutoencoderKL, and the widths that it was trained with.",
  ),
  # Networks that no PyTorch code base has just so: our own names.
  "cmjax": Family(),
}
# net.name -> the family whose names it is written out under.
OF_NETWORK = {"ddpmpp": "edm", "adm": "edm", "edm2": "edm2", "dit": "cmjax", "mlp": "cmjax"}


def torch_names(params: Params, family: str) -> dict[str, str]:
  """{the PyTorch name: the path here} of each parameter; arrays or only their shapes."""
  return {_torch_name(path, _rules(family)): path for path in param_names.by_name(params)}


def constants(
  params: Params, family: str, *, fir: tuple[int, ...] = (1, 1)
) -> dict[str, np.ndarray]:
  """The constants that a PyTorch module of this network stores beside its parameters, by name.

  Args:
    params: of the network; arrays or only their shapes.
    family: the code base, a key of `FAMILIES`.
    fir: taps of the network's resampling filter; they are stored as [1, 1, n, n] with sum 1.
  """
  rules = _rules(family)
  taps = np.asarray(fir, np.float32) / np.float32(sum(fir))
  found = {}
  for pattern, layers in rules.filters:
    matches = (re.match(pattern, path) for path in param_names.by_name(params))
    for module in dict.fromkeys(match[0] for match in matches if match):
      for layer in layers:
        name = _torch_name(f"{module}{layer}/resample_filter", rules)
        found[name] = np.outer(taps, taps)[None, None]
  return found


def to_torch(
  params: Params, family: str, *, fir: tuple[int, ...] = (1, 1)
) -> dict[str, np.ndarray]:
  """The state_dict that a PyTorch module of this network would have, constants included.

  Args:
    params: of the network.
    family: the code base, a key of `FAMILIES`.
    fir: taps of the network's resampling filter.

  Raises:
    ValueError: for an unknown family.

  >>> import jax.numpy as jnp
  >>> state = to_torch({"enc": {"8x8_conv": {"kernel": jnp.zeros((3, 3, 1, 4))}}}, "edm")
  >>> {name: a.shape for name, a in state.items()}
  {'model.enc.8x8_conv.weight': (4, 1, 3, 3)}
  """
  rules = _rules(family)
  state = {
    _torch_name(path, rules): _transposed(path, np.asarray(a), TO_TORCH)
    for path, a in param_names.by_name(params).items()
  }
  return state | constants(params, family, fir=fir)


def from_torch(
  state: Mapping[str, np.ndarray], shapes: Params, family: str, *, fir: tuple[int, ...] = (1, 1)
) -> dict[str, Any]:
  """The parameters of a network from the state_dict of its PyTorch module.

  Args:
    state: arrays by name, in any floating-point dtype.
    shapes: the parameters that the network has, as `jax.eval_shape(net.init, key)` gives them.
    family: the code base that wrote `state`, a key of `FAMILIES`.
    fir: taps of the network's resampling filter. Constants in `state` are dropped, but must say
      the same.

  Returns:
    Arrays with the structure and the dtypes of `shapes`.

  Raises:
    ValueError: for an unknown family, or naming every tensor that is missing, too many, not
      floating-point or of another shape, with what was got and what is expected.
  """
  rules = _rules(family)
  state = {_renamed(name, rules): array for name, array in state.items()}
  wanted, known = param_names.by_name(shapes), constants(shapes, family, fir=fir)
  names = {path: _torch_name(path, rules) for path in wanted}
  errors = []
  for path, a in wanted.items():
    expected = tuple(a.shape[i] for i in _axes(path, a.ndim, TO_TORCH))
    errors += _misfits(names[path], state.get(names[path]), expected)
  for name in sorted(set(state) - set(names.values())):
    got = np.asarray(state[name])
    if name in known:
      same = got.shape == known[name].shape and np.allclose(got, known[name], rtol=1e-3)
      if not same:
        errors.append(f"{name} is a filter of shape {got.shape} other than that of fir={fir}")
    elif not (rules.others and re.search(rules.others, name)):
      errors.append(f"{name} {got.shape} is not in this network")
  if errors:
    more = f"; ... and {len(errors) - 8} more" if len(errors) > 8 else ""
    raise ValueError(
      f"These tensors do not fit the network: {'; '.join(errors[:8])}{more}. {rules.advice}"
    )

  def leaf(path, a):
    path = param_names.name(path)
    return _transposed(path, np.asarray(state[names[path]], a.dtype), FROM_TORCH)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _misfits(name: str, got: np.ndarray | None, expected: tuple[int, ...]) -> list[str]:
  """What is wrong with one tensor, in words; empty if nothing is."""
  if got is None:
    return [f"{name} is missing, expected {expected}"]
  if not jnp.issubdtype(got.dtype, jnp.floating):
    return [f"{name} is {got.dtype}, expected a floating-point type"]
  return [] if got.shape == expected else [f"{name} is {got.shape}, expected {expected}"]


def _rules(family: str) -> Family:
  if family not in FAMILIES:
    raise ValueError(f"Unknown family {family!r}. Choose from: {', '.join(sorted(FAMILIES))}.")
  return FAMILIES[family]


def _renamed(name: str, rules: Family) -> str:
  for pattern, replacement in rules.renamed:
    name = re.sub(pattern, replacement, name)
  return name


def _torch_name(path: str, rules: Family) -> str:
  *module, leaf = path.split("/")
  return rules.prefix + ".".join([*module, LEAVES.get(leaf, leaf)])


def _axes(path: str, ndim: int, table: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
  own = tuple(range(ndim))
  return table.get(ndim, own) if path.rpartition("/")[2] == "kernel" else own


def _transposed(path: str, a: np.ndarray, table: Mapping[int, tuple[int, ...]]) -> np.ndarray:
  return np.array(a.transpose(_axes(path, a.ndim, table)), order="C")
