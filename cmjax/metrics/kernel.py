"""The kernel distance between two sets of features (KID; Binkowski et al. 2018), in float64.

It is the squared maximum mean discrepancy under k(x, y) = (x . y / d + 1)^3. Of m points x and n
points y the unbiased estimate is

  mean of k(x_i, x_j) over i != j + mean of k(y_i, y_j) over i != j - 2 mean of k(x_i, y_j).    (1)

Two sets from one distribution are at 0 on average, on either side of it, whatever their number;
unlike the Fréchet distance it can be compared between sets of different sizes.

The field reports the mean and the standard deviation of (1) over 100 subsets of 1,000 points.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cmjax.metrics.points import as_points, check_same_dim
from cmjax.types import Array


class KernelDistance(NamedTuple):
  """Equation (1) over subsets.

  Attributes:
    mean: over the subsets; the KID.
    std: over the subsets, the "+-" beside a KID in papers: that of one subset, not of the mean.
    half_width: `mean` +- this holds the true value with 95 % confidence. Counted are as many
      subsets as have no point in common; that the others add something is left out.
  """

  mean: float
  std: float
  half_width: float


def unbiased(x: Array | np.ndarray, y: Array | np.ndarray) -> float:
  """Equation (1) of two whole sets [m, d] and [n, d], all pairs at once.

  Raises:
    ValueError: a rank is not 2, the dimensions differ, a number is not finite, or a set has fewer
      than 2 points.
  """
  x, y = _checked(x, y)
  return _off_diagonal_mean(x) + _off_diagonal_mean(y) - 2 * float(_kernel(x, y).mean())


def subsets(
  num_x: int, num_y: int, *, num_subsets: int, subset_size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Which rows of x and of y are the subsets: those that torch-fidelity draws for the same seed."""
  # Unlike Generator's, the stream of RandomState is frozen: the same rows with every NumPy.
  rng = np.random.RandomState(seed)
  for _ in range(num_subsets):
    rows_x = rng.choice(num_x, subset_size, replace=False)
    yield rows_x, rng.choice(num_y, subset_size, replace=False)


def distance(
  x: Array | np.ndarray,
  y: Array | np.ndarray,
  *,
  num_subsets: int = 100,
  subset_size: int = 1_000,
  seed: int = 2020,
) -> KernelDistance:
  """The kernel distance of the samples x [m, d] to the reference y [n, d].

  Args:
    x: features of the samples.
    y: features of the reference.
    num_subsets: how many.
    subset_size: points of each set in each.
    seed: of the choice of points.

  Raises:
    ValueError: as `unbiased`; a set is smaller than a subset, or a number is below what it can be.
  """
  if num_subsets < 2 or subset_size < 2:
    raise ValueError(
      f"A kernel distance needs num_subsets >= 2 and subset_size >= 2, got {num_subsets} and "
      f"{subset_size}; 100 subsets of 1,000 are usual."
    )
  x, y = np.asarray(x), np.asarray(y)
  fewest = min(len(x), len(y))
  if fewest < subset_size:
    raise ValueError(
      f"Subsets of {subset_size:,} points cannot be taken out of {len(x):,} samples and "
      f"{len(y):,} of the reference. Take more of them, or a subset_size of at most {fewest:,}: "
      "the mean does not depend on it, its spread does."
    )
  _check_finite(x, y)
  sizes = dict(num_subsets=num_subsets, subset_size=subset_size, seed=seed)
  values = np.array([unbiased(x[i], y[j]) for i, j in subsets(len(x), len(y), **sizes)])
  apart = min(num_subsets, fewest // subset_size)
  std = float(values.std())
  return KernelDistance(float(values.mean()), std, 1.96 * std / np.sqrt(apart))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_mean(x: np.ndarray) -> float:
  K, n = _kernel(x, x), len(x)
  return float((K.sum() - np.trace(K)) / (n * (n - 1)))


def _check_finite(x: np.ndarray, y: np.ndarray) -> None:
  """As `_checked`, without keeping float64 copies of sets of which only subsets are looked at."""
  _checked(x[:2], y[:2])
  for what, points in (("samples", x), ("reference", y)):
    for start in range(0, len(points), 4096):
      as_points(points[start : start + 4096], f"features of the {what}")


def _checked(x: Array | np.ndarray, y: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = as_points(x, "features of the samples"), as_points(y, "features of the reference")
  check_same_dim(
    x.shape[1], y.shape[1], "Use the same detector for the samples and for the reference."
  )
  if min(len(x), len(y)) < 2:
    raise ValueError(f"Pairs need sets of at least 2 points, got {len(x)} and {len(y)}.")
  return x, y
