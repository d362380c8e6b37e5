"""Precision, recall, density and coverage: two sets of features compared by nearest neighbours.

Around each point of a set is a ball that reaches to its k-th nearest neighbour in that set, itself
not counted. With balls of the reference ("real") and of the samples ("fake"),

  precision = part of the samples that are in any real ball                 Kynkaanniemi et al. 2019
  recall    = part of the reference that is in any fake ball                the same
  density   = real balls that a sample is in, on average, over k            Naeem et al. 2020
  coverage  = part of the real balls that have a sample in them             the same

As in their authors' code, a ball has its surface for precision and recall (<=), and not for density
and coverage (<); and k is 3 and 5.

Distances are computed in float64, by blocks of rows: two sets of 50,000 points in 2,048 dimensions
need half a GB beside themselves. All four numbers change with the number of points in either set.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cmjax.metrics.points import as_points, check_same_dim
from cmjax.types import Array

ROWS, COLUMNS = 1_024, 8_192  # of a block of distances: 67 MB

# function of rows [start, stop) of n -> values [stop - start, ...], and n -> values [n, ...]
Spread = Callable[[Callable[[int, int], np.ndarray], int], np.ndarray]


class Neighbours(NamedTuple):
  """The four numbers; precision, recall and coverage are in [0, 1]."""

  precision: float
  recall: float
  density: float
  coverage: float


def here(function: Callable[[int, int], np.ndarray], num: int) -> np.ndarray:
  """function(0, num), all of it in this process; others split the rows and put them together."""
  return function(0, num)


def compare(
  fake: Array | np.ndarray,
  real: Array | np.ndarray,
  *,
  k: int = 3,
  k_density: int = 5,
  spread: Spread = here,
) -> Neighbours:
  """Precision, recall, density and coverage of samples [m, d] against a reference [n, d].

  Args:
    fake: features of the samples.
    real: features of the reference.
    k: of precision and recall.
    k_density: of density and coverage.
    spread: how rows are split over processes.

  Raises:
    ValueError: a rank is not 2, the dimensions differ, a number is not finite, or a set has no
      k-th neighbours.
  """
  fake, real = _checked(fake, real, max(k, k_density), min(k, k_density))
  # Distances between points are the same anywhere; near 0 the least is lost to rounding.
  centre = np.mean(real, axis=0, dtype=np.float64)
  real_radii = spread(lambda *rows: radii(real, (k, k_density), centre, *rows), len(real))
  fake_radii = spread(lambda *rows: radii(fake, (k,), centre, *rows), len(fake))
  inside, balls = spread(
    lambda *rows: _in_real_balls(fake, real, real_radii, centre, *rows), len(fake)
  ).T
  recalled, covered = spread(
    lambda *rows: _of_real(real, fake, fake_radii, real_radii, centre, *rows), len(real)
  ).T
  return Neighbours(
    float(inside.mean()), float(recalled.mean()), float(balls.mean() / k_density),
    float(covered.mean()),
  )  # fmt: skip


def radii(
  x: np.ndarray, ks: tuple[int, ...], centre: np.ndarray, start: int, stop: int
) -> np.ndarray:
  """Squared distances to the k-th nearest neighbours of rows [start, stop): [stop - start, ks]."""
  found = []
  for low, high in _blocks(start, stop, ROWS):
    nearest = np.full((high - low, max(ks)), np.inf)
    for first, block in _distances(x, low, high, x, centre):
      # Itself is no neighbour. By place and not by a distance of 0: a copy of it is one.
      own = np.arange(max(low, first), min(high, first + block.shape[1]))
      block[own - low, own - first] = np.inf
      both = np.concatenate([nearest, block], axis=1)
      nearest = np.partition(both, max(ks) - 1, axis=1)[:, : max(ks)]
    found.append(np.sort(nearest, axis=1)[:, [k - 1 for k in ks]])
  return np.concatenate(found) if found else np.zeros((0, len(ks)))


def _in_real_balls(
  fake: np.ndarray, real: np.ndarray, real_radii: np.ndarray, centre: np.ndarray, start: int,
  stop: int,
) -> np.ndarray:  # fmt: skip
  """Of each sample: whether it is in any ball of the first k, and in how many of the second."""
  counts = np.zeros((stop - start, 2))
  for low, high in _blocks(start, stop, ROWS):
    for first, block in _distances(fake, low, high, real, centre):
      closed, open_ = real_radii[first : first + block.shape[1]].T
      rows = slice(low - start, high - start)
      counts[rows, 0] += (block <= closed[None]).any(axis=1)
      counts[rows, 1] += (block < open_[None]).sum(axis=1)
  counts[:, 0] = counts[:, 0] > 0
  return counts


def _of_real(
  real: np.ndarray, fake: np.ndarray, fake_radii: np.ndarray, real_radii: np.ndarray,
  centre: np.ndarray, start: int, stop: int,
) -> np.ndarray:  # fmt: skip
  """Of each point of the reference: whether it is in any fake ball, and whether a sample in its."""
  found = np.zeros((stop - start, 2), bool)
  for low, high in _blocks(start, stop, ROWS):
    for first, block in _distances(real, low, high, fake, centre):
      rows = slice(low - start, high - start)
      reach = fake_radii[first : first + block.shape[1], 0]
      found[rows, 0] |= (block <= reach[None]).any(axis=1)
      found[rows, 1] |= block.min(axis=1) < real_radii[low:high, 1]
  return found.astype(np.float64)


def _distances(x: np.ndarray, start: int, stop: int, y: np.ndarray, centre: np.ndarray):
  """(first column, squared distances [rows, columns]) of rows [start, stop) of x to all of y."""
  rows = x[start:stop] - centre[None]
  squared = np.sum(rows**2, axis=1)
  for first, last in _blocks(0, len(y), COLUMNS):
    columns = y[first:last] - centre[None]
    block = squared[:, None] + np.sum(columns**2, axis=1)[None] - 2 * (rows @ columns.T)
    yield first, np.maximum(block, 0, out=block)


def _blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
  return [(low, min(low + size, stop)) for low in range(start, stop, size)]


def _checked(
  fake: Array | np.ndarray, real: Array | np.ndarray, most: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
  fake, real = np.asarray(fake), np.asarray(real)
  if least < 1:
    raise ValueError(f"Neighbours are counted from 1, got k={least}.")
  for what, points in (("samples", fake), ("reference", real)):
    if len(points) <= most:
      raise ValueError(
        f"A ball that reaches to the {most}-th neighbour needs more than {most} points, got "
        f"{len(points)} of the {what}."
      )
    for start, stop in _blocks(0, len(points), 4096):
      as_points(points[start:stop], f"features of the {what}")
  check_same_dim(
    fake.shape[1], real.shape[1], "Use the same detector for the samples and for the reference."
  )
  return fake, real
