"""The file of weights that a detector's authors publish, converted to the .npz that cmjax reads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmjax.convert import files
from cmjax.convert.tensors import as_float32
from cmjax.metrics.detectors import DETECTORS, weights
from cmjax.metrics.detectors.network import shapes


def convert(source: str | Path, target: str | Path) -> str:
  """Writes the weights in a file of PyTorch's as an .npz, and says what was found.

  Raises:
    ValueError: with the path: for a file that is broken or hostile, as `files.read`; one of no
      detector; one whose tensors do not fit, as `weights.check`; a target that exists.
  """
  state = _only_network(source)
  name = _which(source, state)
  try:
    floats = {n: as_float32(n, a) if a.dtype.kind != "i" else a for n, a in state.items()}
    tensors = weights.check(floats, DETECTORS[name])
  except ValueError as error:
    raise ValueError(f"{source}: as {name}, {error}") from None
  weights.write(target, tensors)
  size = sum(a.size for a in tensors.values())
  return (
    f"{target}: {name}, {len(tensors)} tensors, {size:,} numbers\n"
    f"weights_sha256 {weights.digest(tensors)}\n"
    "Converted weights keep the licence of the file they come from."
  )


def _only_network(source: str | Path) -> Mapping[str, np.ndarray]:
  found = files.read(source).networks
  if len(found) != 1:
    raise ValueError(
      f"{source}: it has {len(found)} networks, expected one: a file of a detector's weights "
      "and no others."
    )
  return next(iter(found.values())).tensors


def _which(source: str | Path, state: Mapping[str, np.ndarray]) -> str:
  """The detector that has most of these names."""
  shared = {name: len(state.keys() & shapes(p.module).keys()) for name, p in DETECTORS.items()}
  best = max(shared, key=lambda name: shared[name])
  if not shared[best]:
    raise ValueError(
      f"{source}: its tensors ({', '.join(list(state)[:3])}, ...) are of none of the detectors: "
      + "; ".join(f"{name} ({p.origin})" for name, p in DETECTORS.items())
    )
  return best
