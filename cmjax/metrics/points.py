"""What every metric takes: n points of d numbers in float64, or an error that says why not."""

import numpy as np

from cmjax.types import Array


def as_points(array: Array | np.ndarray, what: str = "features") -> np.ndarray:
  """`array` as float64 [n, d], checked.

  Args:
    array: [n, d], n and d at least 1, of any real dtype.
    what: what to call it in an error.

  Raises:
    ValueError: the rank is not 2, there are no points or dimensions, or a number is not finite.
  """
  points = np.asarray(array, np.float64)
  if points.ndim != 2 or 0 in points.shape:
    raise ValueError(
      f"{what} must have shape [n, d] with n and d at least 1, got {list(points.shape)}. "
      "Flatten images first: x.reshape(len(x), -1)."
    )
  bad = int(np.sum(~np.isfinite(points).all(axis=1)))
  if bad:
    raise ValueError(
      f"{bad} of {len(points)} rows of {what} hold NaN or infinity; every number must be finite. "
      "Look at what made them: leaving these rows out would change what is measured."
    )
  return points


def check_same_dim(dim_a: int, dim_b: int, advice: str) -> None:
  """A ValueError, ending in `advice`, unless both sets of points have the same d."""
  if dim_a != dim_b:
    raise ValueError(f"Both sides must have the same dimension, got {dim_a} and {dim_b}. {advice}")
