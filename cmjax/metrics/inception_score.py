"""The Inception score (Salimans et al. 2016): are images sure of their class, and classes even?

  IS = exp(mean over x of KL(p(y | x) || p(y))),    p(y) = mean over x of p(y | x).        (1)

The images are split into ten parts of neighbours, and the mean and the standard deviation of (1)
over them are what papers report. It knows nothing of a reference. The value depends on the
classifier, and on the number of images in a part: 5,000 where there are 50,000.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from cmjax.metrics.points import as_points
from cmjax.types import Array


class InceptionScore(NamedTuple):
  """Mean and standard deviation (of the population) over the parts."""

  mean: float
  std: float


def score(logits: Array | np.ndarray, *, num_splits: int = 10) -> InceptionScore:
  """Equation (1) over equal parts of the logits [n, k], in their order.

  Raises:
    ValueError: the rank is not 2, a number is not finite, or there are more parts than rows.
  """
  logits = np.asarray(logits)
  if not 1 <= num_splits <= len(logits):
    raise ValueError(
      f"{len(logits)} images cannot be split into {num_splits} parts; 10 of 5,000 are usual."
    )
  ends = [len(logits) * i // num_splits for i in range(num_splits + 1)]
  values = [_score(logits[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
  return InceptionScore(float(np.mean(values)), float(np.std(values)))


def _score(logits: np.ndarray) -> float:
  log_p = scipy.special.log_softmax(as_points(logits, "logits"), axis=1)
  p = np.exp(log_p)
  # In logarithms, so that a class that no image has leaves 0 log 0 = 0.
  log_mean = scipy.special.logsumexp(log_p, axis=0) - np.log(len(log_p))
  return float(np.exp(np.mean(np.sum(p * (log_p - log_mean[None]), axis=1))))
