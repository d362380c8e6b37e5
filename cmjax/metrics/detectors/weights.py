"""The weights of a detector in an .npz: arrays with the names and the layouts of PyTorch."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.base import paths
from cmjax.base.atomic_files import replacing
from cmjax.base.npz import opened
from cmjax.metrics.detectors.network import Pretrained, shapes

COMMAND = "python -m cmjax.metrics.detectors FILE --to OUT.npz"


def read(path: str | Path, pretrained: Pretrained) -> dict[str, np.ndarray]:
  """The tensors of a network from an .npz, float32, in the order of their names.

  Raises:
    ValueError: with the path, for a file that is missing or no .npz, and as `check`.
  """
  path = paths.local(path)
  advice = f"Weights are not shipped: docs/guides/detectors.md says how to get them; `{COMMAND}`."
  if not path.is_file():
    raise ValueError(f"There are no weights at {path}. {advice}")
  try:
    with opened(path) as file:
      state = {name: file[name] for name in file}
  except ValueError as error:
    raise ValueError(f"{path} is no .npz of weights: {error}. {advice}") from error
  try:
    return check(state, pretrained)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def check(state: Mapping[str, np.ndarray], pretrained: Pretrained) -> dict[str, np.ndarray]:
  """The tensors that the network uses, if all are there and fit.

  Raises:
    ValueError: naming the tensors that are missing, unknown, not floating-point or finite, or of
      another shape, with what was got and what is expected.
  """
  expected = shapes(pretrained.module)
  errors = [
    f"{name} is missing, expected {list(shape)}"
    for name, shape in expected.items()
    if name not in state
  ]
  for name, array in state.items():
    if name in expected:
      errors += _misfits(name, array, expected[name])
    elif not re.search(pretrained.others, name):
      errors.append(f"{name} {list(array.shape)} is not in this network")
  if errors:
    more = f"; ... and {len(errors) - 5} more" if len(errors) > 5 else ""
    raise ValueError(
      f"these are not the weights that are expected: {'; '.join(errors[:5])}{more}. Expected is "
      f"{pretrained.origin}."
    )
  return {name: np.asarray(state[name], np.float32) for name in sorted(expected)}


def _misfits(name: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
  if array.dtype.kind != "f":
    return [f"{name} is {array.dtype}, expected floating-point"]
  if array.shape != shape:
    return [f"{name} is {list(array.shape)}, expected {list(shape)}"]
  return [] if np.isfinite(array).all() else [f"{name} has values that are not finite"]


def digest(state: Mapping[str, np.ndarray]) -> str:
  """The sha256 of names, shapes and values: the same from whatever file they were read."""
  found = hashlib.sha256()
  for name, array in sorted(state.items()):
    found.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()


def write(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
  """An .npz of these; it is there whole or not at all.

  Raises:
    ValueError: the path does not end in .npz, or there is a file.
  """
  path = paths.local(path)
  if path.suffix != ".npz":
    raise ValueError(f"--to={path}: weights are written to a file that ends in .npz.")
  if path.exists():
    raise ValueError(f"{path} exists: choose another name, or remove it.")
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = dict(state)
  with replacing(path) as file:
    np.savez(file, **arrays)
