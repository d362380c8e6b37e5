"""Which steps a consistency sampler takes, in the words people use: sigmas, positions, segments.

The samplers want decreasing angles; papers and released code name the same steps by noise levels
(CM, iCT) or by positions in a Karras grid (the `ts` and `steps` of OpenAI's code).
"""

from collections.abc import Sequence

import numpy as np

from cmjax import times


def consistency_times_from_sigmas(*sigmas: float, sigma_data: float) -> np.ndarray:
  """Noise levels, high to low, as angles: arctan(sigma / sigma_data).

  All of them: the first is where sampling starts, 80 in every paper.

  >>> consistency_times_from_sigmas(80.0, 0.821, sigma_data=0.5).round(4).tolist()
  [1.5645, 1.0238]
  """
  array = np.asarray(sigmas, np.float64)
  if not len(array) or not np.all(np.isfinite(array)) or not np.all(array > 0):
    raise ValueError(f"Noise levels must be positive and finite, one per step, got {sigmas}.")
  if not np.all(np.diff(array) < 0):
    raise ValueError(f"Noise levels must decrease, got {sigmas}: the first step has the highest.")
  return np.arctan2(array, sigma_data)


def consistency_times_from_positions(
  positions: Sequence[int] | np.ndarray, steps: int, *, sigma_data: float, **grid: float
) -> np.ndarray:
  """OpenAI's `ts` and `steps` as angles, one per network evaluation.

  A position counts downwards in a Karras grid of `steps` points, from 0 at sigma_max to
  steps - 1 at sigma_min. The last one of `ts` is where their sampler stops: it adds no noise
  there and does not call the network, so it gives no angle here.

  >>> angles = consistency_times_from_positions([0, 22, 39], 40, sigma_data=0.5)
  >>> (0.5 * np.tan(angles)).round(3).tolist()
  [80.0, 1.382]

  Args:
    positions: increasing integers that end in steps - 1.
    steps: points of the grid; 18 or 40 for distilled, 151 or 201 for trained models.
    sigma_data: std of the data.
    **grid: sigma_min, sigma_max and rho of `times.karras_sigmas`.
  """
  sigmas = times.karras_sigmas(steps, **grid)
  indices = np.asarray(positions)
  if indices.ndim != 1 or len(indices) < 2 or not np.issubdtype(indices.dtype, np.integer):
    raise ValueError(f"Positions are two or more integers, first to last, got {positions}.")
  if not np.all(np.diff(indices) > 0) or indices[0] < 0 or indices[-1] >= steps:
    raise ValueError(f"Positions must increase within [0, {steps - 1}], got {positions}.")
  if indices[-1] != steps - 1:
    raise ValueError(f"Positions must end in steps - 1 = {steps - 1}, got {positions}: anywhere "
                     "else noise would stay in the samples.")  # fmt: skip
  return consistency_times_from_sigmas(*sigmas[indices[:-1]], sigma_data=sigma_data)
