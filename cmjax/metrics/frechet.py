"""The Fréchet distance between two sets of features, from exact streaming moments, in float64.

With means mu and covariances S (denominator n - 1) of n feature vectors of any dimension d,

  distance = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^(1/2) S_b S_a^(1/2))^(1/2)),      (1)

the squared Wasserstein-2 distance of two Gaussians (Dowson and Landau 1982). On Inception features
it is the FID (Heusel et al. 2017), on DINOv2 features FD-DINOv2 (Stein et al. 2023).

The estimate is biased upwards, by about 1 / n (Chong and Forsyth 2020): compare only numbers from
equally many samples. With n <= d the covariance is singular; (1) is still defined and computed
accurately, but the bias is then of the order of the distance itself.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cmjax.metrics.points import as_points, check_same_dim
from cmjax.types import Array

# Negative eigenvalues down to this part of the largest are rounding: statistics that were once
# stored in float32 reach 1e-7. Anything below is no covariance.
NEGATIVE_TOLERANCE = 1e-6


class Moments(NamedTuple):
  """What is known of a set of features: enough for `distance`, and mergeable."""

  num: int
  mean: np.ndarray  # [d]
  scatter: np.ndarray  # [d, d]: sum of (x - mean)(x - mean)^T

  @property
  def covariance(self) -> np.ndarray:
    """[d, d], with denominator n - 1."""
    if self.num < 2:
      raise ValueError(f"A covariance needs at least 2 samples, got {self.num}. Add more features.")
    return self.scatter / (self.num - 1)


def moments(features: Array | np.ndarray) -> Moments:
  """The moments of one array of features.

  Args:
    features: [n, d], any real dtype; all arithmetic is in float64.

  Raises:
    ValueError: the rank is not 2, there are no samples, or a number is not finite.
  """
  x = as_points(features)
  mean = x.mean(axis=0)
  centred = x - mean
  return Moments(len(x), mean, centred.T @ centred)


def from_covariance(
  mean: Array | np.ndarray, covariance: Array | np.ndarray, num: int = 2
) -> Moments:
  """Moments from published statistics, such as `mu` and `sigma` of a reference file.

  Args:
    mean: [d].
    covariance: [d, d], with denominator n - 1.
    num: n. `distance` does not depend on it; `merge` does.

  Raises:
    ValueError: the shapes do not fit, num < 2, a number is not finite, or the covariance is not
      symmetric.
  """
  S = as_points(covariance, "covariance")
  mu = np.asarray(mean, np.float64)
  if mu.ndim != 1 or S.shape != (mu.size, mu.size):
    raise ValueError(
      f"mean must have shape [d] and covariance [d, d], got {list(mu.shape)} and {list(S.shape)}. "
      "Check that they were not swapped when they were read."
    )
  mu = as_points(mu[None], "mean")[0]
  if num < 2:
    raise ValueError(
      f"A covariance comes from num >= 2 samples, got num={num}. Leave it out if unknown."
    )
  asymmetry, scale = np.abs(S - S.T).max(), np.abs(S).max()
  if asymmetry > NEGATIVE_TOLERANCE * scale:
    raise ValueError(
      f"covariance must be symmetric, got differences of {asymmetry:.3g} beside entries of "
      f"{scale:.3g}. Check how it was read."
    )
  return Moments(num, mu, S * (num - 1))


def merge(a: Moments, b: Moments) -> Moments:
  """The moments of both sets together; exact (Chan, Golub and LeVeque 1983).

  Raises:
    ValueError: the dimensions differ.
  """
  check_same_dim(a.mean.size, b.mean.size, "Features of different detectors cannot be merged.")
  num = a.num + b.num
  # Weighted, not a.mean + delta * b.num / num: so merge(a, b) and merge(b, a) are the same bits.
  mean = (a.num * a.mean + b.num * b.mean) / num
  delta = b.mean - a.mean
  scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.num * b.num / num)
  return Moments(num, mean, scatter)


def merge_all(parts: Iterable[Moments | None]) -> Moments | None:
  """The moments of all parts together; None of none. A None among them is a part without any."""
  total = None
  for part in parts:
    total = part if total is None else total if part is None else merge(total, part)
  return total


def streaming(batches: Iterable[Array | np.ndarray]) -> Moments:
  """The moments of all batches together; only one batch is in memory at a time.

  Args:
    batches: arrays [n_i, d], with any n_i >= 1.

  Raises:
    ValueError: there is no batch, or `moments` or `merge` refuses one.
  """
  total = merge_all(map(moments, batches))
  if total is None:
    raise ValueError(
      "Moments need at least one batch of features, got none. Was it used up before?"
    )
  return total


def distance(a: Moments, b: Moments) -> float:
  """Equation (1): a squared length, as FID is. Symmetric, and 0 for equal moments.

  Raises:
    ValueError: the dimensions differ, one side has fewer than 2 samples, or has a covariance with
      an eigenvalue below -1e-6 of its largest.
  """
  check_same_dim(
    a.mean.size, b.mean.size, "Use the same detector for the samples and for the reference."
  )
  w_a, V_a = _spectrum(a.covariance)
  w_b, V_b = _spectrum(b.covariance)
  # tr((A B A)^(1/2)) with A = S_a^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2).
  # Taken so, no root is taken of rounding errors: a root would lift 1e-16 to 1e-8.
  roots = np.sqrt(w_a)[:, None] * (V_a.T @ V_b) * np.sqrt(w_b)
  overlap = np.linalg.svd(roots, compute_uv=False).sum()
  value = np.sum((a.mean - b.mean) ** 2) + w_a.sum() + w_b.sum() - 2 * overlap
  return max(float(value), 0.0)  # below 0 only by rounding: (1) is never negative


def bias(reference: Moments, num: int, *, seed: int = 0) -> float:
  """The distance to `reference` of `num` draws from the Gaussian with its own moments.

  It is what a set of `num` images would have on average if it were as good as can be; with many
  dimensions one draw is close to the mean.

  Args:
    reference: moments.
    num: of samples, at least 2.
    seed: of the draw.
  """
  w, _ = _spectrum(reference.covariance)
  if not len(w):
    return 0.0
  x = np.random.default_rng(seed).standard_normal((num, len(w))) * np.sqrt(w)[None]
  return distance(moments(x), from_covariance(np.zeros(len(w)), np.diag(w)))


def _spectrum(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The positive eigenvalues [r] of a covariance, and their eigenvectors [d, r]."""
  w, V = np.linalg.eigh(S)
  largest = max(w[-1], 0.0)
  if w[0] < -NEGATIVE_TOLERANCE * largest:
    raise ValueError(
      f"A covariance has no negative eigenvalues, got {w[0]:.3g} (the largest is {w[-1]:.3g}). "
      "Accumulate the statistics in float64 and around the mean, as frechet.streaming does."
    )
  # What eigh cannot tell from 0 is left out: half of it is positive, and its roots would add up.
  keep = w > len(w) * np.finfo(w.dtype).eps * largest
  return w[keep], V[:, keep]
