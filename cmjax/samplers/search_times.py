"""Which intermediate times a consistency sampler of few steps should visit.

Greedy, as Song et al. 2023 (section 3) choose theirs: one new time after another, each by a search
on log sigma with the times before it fixed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# The intermediate times, decreasing angles -> what to minimise, e.g. FID.
Score = Callable[[tuple[float, ...]], float]


class Search(NamedTuple):
  """What a search found, and every probe on the way."""

  times: tuple[float, ...]  # decreasing angles, num_steps - 1 of them
  score: float
  history: list[tuple[tuple[float, ...], float]]  # in the order of evaluation, none twice


def search(score: Score, num_steps: int, *, low: float, high: float, num_probes: int) -> Search:
  """The intermediate times with the lowest score.

  Per new time, about half of the probes are a coarse grid on log sigma over all of [low, high]; the
  rest are a ternary search between the neighbours of its best point. Ternary search alone, as in
  the paper, assumes that the score is unimodal in the new time and throws away a third of the
  range at a time on the strength of one comparison: one noisy FID at the start misleads it for
  good. Here unimodality is assumed only between those neighbours, and the best probe of all is
  returned, not the last. Nothing is random: the same scores give the same answer.

  The tuple given to `score` is what `times.consistency_times(*mid)` takes; the first step at t_max
  is not part of it.

  Args:
    score: intermediate times -> number to minimise. Give all probes the same noise, and enough
      samples: differences below the standard error of the score are not found.
    num_steps: network evaluations of the sampler, 2 to 4.
    low: the smallest angle to try, above 0.
    high: the largest, below t_max.
    num_probes: evaluations of `score` per new time, at least 5.

  Returns:
    `Search(times, score, history)`.

  Raises:
    ValueError: an argument is outside of the ranges above, or a score is not finite.
  """
  if num_steps not in (2, 3, 4):
    raise ValueError(f"num_steps={num_steps} must be 2, 3 or 4: one step has no time to search, "
                     "and greedy search from 5 on is better replaced by a grid.")  # fmt: skip
  if not 0 < low < high < math.pi / 2:
    raise ValueError(f"Need angles 0 < low < high < pi/2, got {low} and {high}: for EDM noise "
                     "levels use trigflow.sigma_to_t.")  # fmt: skip
  if num_probes < 5:
    raise ValueError(f"num_probes={num_probes} must be at least 5: three to bracket, two to refine")
  probes: dict[tuple[float, ...], float] = {}
  times: tuple[float, ...] = ()
  for _ in range(num_steps - 1):
    times = _add_time(lambda mid: _probe(score, mid, probes), times, low, high, num_probes)
  return Search(times, probes[times], list(probes.items()))


def _probe(score: Score, times: tuple[float, ...], probes: dict) -> float:
  """score(times), evaluated once."""
  if times not in probes:
    value = float(score(times))
    if not math.isfinite(value):
      raise ValueError(f"score({times}) = {value} is not finite: look at the samples of these "
                       "times before searching on.")  # fmt: skip
    probes[times] = value
  return probes[times]


def _add_time(probe, fixed: tuple[float, ...], low: float, high: float, num_probes: int):
  """The best times with one more than `fixed`."""
  seen: dict[tuple[float, ...], float] = {}

  def at(x: float) -> float:
    # log tan t is log sigma up to a constant. Two equal times are no sampler: infinitely bad.
    t = math.atan(math.exp(x))
    if any(math.isclose(t, other, rel_tol=1e-9) for other in fixed):
      return math.inf
    times = tuple(sorted((*fixed, t), reverse=True))
    seen[times] = probe(times)
    return seen[times]

  num_coarse = max(3, (num_probes + 1) // 2)
  grid = np.linspace(math.log(math.tan(low)), math.log(math.tan(high)), num_coarse).tolist()
  best = int(np.argmin([at(x) for x in grid]))
  left, right = grid[max(best - 1, 0)], grid[min(best + 1, num_coarse - 1)]
  for _ in range((num_probes - num_coarse) // 2):
    third = (right - left) / 3
    if at(left + third) <= at(right - third):
      right -= third
    else:
      left += third
  return min(seen, key=lambda times: seen[times])
