"""Many rows through a function, so many at a time on every device that this process has."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Of each output: rows, or None where there is none.
Outputs = tuple[np.ndarray | None, ...]


def in_batches(
  function: Callable[[Any, jax.Array], tuple[jax.Array | None, ...]],
  weights: Any,
  mesh: Mesh | None,
  batch_size: int,
) -> Callable[[np.ndarray], Outputs]:
  """rows [n, ...] -> `function`(weights, rows), split over devices.

  Nothing has to be in step with other processes: each has its own rows.

  Args:
    function: compiled; its outputs are None, or have as many rows as it is given.
    weights: held by every device.
    mesh: the rows are split over the devices of it that this process has; None: one device.
    batch_size: rows at a time on each device; always so many, with zeros at the end: compiled once,
      and what becomes of a row does not depend on how many there are.
  """
  whole, split, num = None, None, batch_size
  if mesh is not None:
    local = mesh.local_mesh
    whole = NamedSharding(local, PartitionSpec())
    split, num = NamedSharding(local, PartitionSpec(local.axis_names)), batch_size * local.size
  weights = jax.device_put(weights, whole)

  def run(rows):
    parts = []
    for start in range(0, max(1, len(rows)), num):  # without rows too: their shape is asked for
      part = rows[start : start + num]
      full = np.zeros((num, *rows.shape[1:]), rows.dtype)
      full[: len(part)] = part
      made = function(weights, jax.device_put(full, split))
      parts.append([None if a is None else np.asarray(a)[: len(part)] for a in made])
    return tuple(None if a[0] is None else np.concatenate(a) for a in zip(*parts, strict=True))

  return run
