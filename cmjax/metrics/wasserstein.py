"""The sliced Wasserstein-2 distance between two clouds of points (Bonneel et al. 2015).

  SW_2^2(x, y) = mean over directions theta of W_2^2(x . theta, y . theta),      |theta| = 1,

and in one dimension W_2^2 is the integral over u in (0, 1) of the squared difference of the two
quantile functions. Unlike the Fréchet distance it needs no features and sees more than two moments,
which suits points in the plane. Between two samples of n points from one distribution it is not 0
but falls roughly as n^(-1/2): compare numbers from equally many points.
"""

import numpy as np

from cmjax.metrics.points import as_points, check_same_dim
from cmjax.types import Array


def sliced(
  x: Array | np.ndarray, y: Array | np.ndarray, *, num_projections: int = 128, seed: int = 0
) -> float:
  """The distance SW_2 (a length, not its square) along random directions.

  Directions come in orthonormal sets, each a random rotation of the axes. With a multiple of d of
  them, a shift is measured without error: by |shift| / sqrt(d).

  Args:
    x: [n, d].
    y: [m, d]; m need not be n.
    num_projections: how many directions.
    seed: of the directions; the same seed compares many clouds along the same ones.

  Raises:
    ValueError: a rank is not 2, the dimensions differ, a number is not finite, or there are no
      directions.
  """
  x, y = as_points(x, "x"), as_points(y, "y")
  check_same_dim(x.shape[1], y.shape[1], "Compare points of the same space.")
  if num_projections < 1:
    raise ValueError(f"num_projections must be at least 1, got {num_projections}. 128 is usual.")
  theta = _directions(x.shape[1], num_projections, np.random.default_rng(seed))
  x, y = np.sort(x @ theta, axis=0), np.sort(y @ theta, axis=0)
  i, j, width = _common_quantiles(len(x), len(y))
  squared = width @ (x[i] - y[j]) ** 2  # [num_projections]
  return float(np.sqrt(squared.mean()))


def _directions(dim: int, num: int, rng: np.random.Generator) -> np.ndarray:
  """Unit vectors [dim, num], uniform on the sphere, orthonormal in groups of dim."""
  groups = []
  for start in range(0, num, dim):
    Q, R = np.linalg.qr(rng.standard_normal((dim, min(dim, num - start))))
    # Uniform over rotations only with the signs of R's diagonal taken out (Mezzadri 2007).
    groups.append(Q * np.sign(np.diag(R)))
  return np.concatenate(groups, axis=1)


def _common_quantiles(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Intervals on which both quantile functions are constant: indices into each, and widths."""
  # In units of 1 / (n m), the steps are at integers: no two that coincide are missed by rounding.
  ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
  width = np.diff(ends, prepend=0) / (n * m)
  return (ends - 1) // m, (ends - 1) // n, width
