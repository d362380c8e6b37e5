"""Averages of any length after training, from stored copies of a few (Karras et al. 2024, app. C).

A power-function average at time T is the parameters weighted with p_T(t) = (g + 1) t^g / T^(g + 1)
on [0, T]. Copies of such averages, stored at several times, span a space of profiles; the average
that was wanted is replaced by the combination of copies whose profile is nearest to its own in L2:
A x = b, with A_ij = <p_i, p_j> and b_i = <p_i, p_r>. All of it in float64: A's condition is 1e6 to
1e9, beyond what float32 can solve.

Times are in any unit, steps or images: only their ratios count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmjax.ema import power_gamma

Number = int | float | np.number
Numbers = np.ndarray | Sequence[int | float] | Number


class Fit(NamedTuple):
  """How a wanted average is made of the copies."""

  weights: np.ndarray  # float64 [n], of sum 1; 0 for copies of later times than the wanted one
  residual: float  # |profile got - profile wanted| / |profile wanted| in L2
  condition: float  # of A, for the copies that are used


def profile(t: Numbers, t_end: Number, sigma_rel: float) -> np.ndarray:
  """p(t) = (g + 1) t^g / t_end^(g + 1) up to t_end, and 0 after it: [*t], of integral 1."""
  t, g = np.asarray(t, np.float64), power_gamma(sigma_rel)
  inside = (t > 0) & (t <= t_end)
  log_ratio = np.log(np.where(inside, t, t_end) / t_end)
  return np.asarray(np.where(inside, (g + 1) / t_end * np.exp(g * log_ratio), 0.0))


def inner(t_a: Numbers, g_a: Numbers, t_b: Numbers, g_b: Numbers) -> np.ndarray:
  """<p_a, p_b>, the integral of the product of two profiles: times t and exponents g, broadcast.

  (g_a + 1) (g_b + 1) r^e / ((g_a + g_b + 1) max(t_a, t_b)), with r = t_a / t_b, and e = g_b where
  t_a < t_b, else -g_a. The power is at most 1, and taken through its logarithm: with gammas in the
  tens, powers of the times themselves overflow.
  """
  t_a, g_a, t_b, g_b = (np.asarray(x, np.float64) for x in (t_a, g_a, t_b, g_b))
  log_r = np.log(t_a) - np.log(t_b)
  power = np.exp(np.where(log_r < 0, g_b, -g_a) * log_r)
  return np.asarray((g_a + 1) * (g_b + 1) * power / ((g_a + g_b + 1) * np.maximum(t_a, t_b)))


def gram(times: Numbers, sigma_rels: Sequence[int | float]) -> np.ndarray:
  """A, the inner products of the profiles of n copies: [n, n]."""
  t, g = np.asarray(times, np.float64), np.array([power_gamma(s) for s in sigma_rels])
  return inner(t[:, None], g[:, None], t[None, :], g[None, :])


def weights(
  snapshot_times: Numbers,
  snapshot_sigma_rels: Sequence[int | float],
  t_r: Number,
  sigma_rel: float,
) -> np.ndarray:
  """How much each copy counts in the average of length `sigma_rel` at time `t_r`: see `fit`."""
  return fit(snapshot_times, snapshot_sigma_rels, t_r, sigma_rel).weights


def fit(
  snapshot_times: Numbers,
  snapshot_sigma_rels: Sequence[int | float],
  t_r: Number,
  sigma_rel: float,
) -> Fit:
  """The weights of the copies, and how near they come to the average that was wanted.

  The solution is divided by its sum, as the published code does and the paper (algorithm 3) does
  not: constant parameters then come back exactly. Weights may be negative.

  Args:
    snapshot_times: of the n copies, one entry for each length and time, in any order.
    snapshot_sigma_rels: their lengths.
    t_r: the end of the average that is wanted, from the first to the last of the times. Copies of
      later times are not used. Between two of them the newest training is in no copy, and the
      residual says how much that matters.
    sigma_rel: the length that is wanted.

  Raises:
    ValueError: fewer than two copies up to t_r, two that are the same, a time that is not positive,
      a t_r or a sigma_rel that no combination can have.
  """
  g_r = power_gamma(sigma_rel)
  used = _usable(snapshot_times, snapshot_sigma_rels, t_r)
  # In units of t_r: the solution does not change, and neither does the condition.
  t = np.asarray(snapshot_times, np.float64)[used] / t_r
  sigma_rels = np.asarray(snapshot_sigma_rels, np.float64)[used]
  g = np.array([power_gamma(s) for s in sigma_rels])
  A, b = gram(t, sigma_rels.tolist()), inner(t, g, 1.0, g_r)
  x = np.linalg.solve(A, b)
  x = x / x.sum()
  wanted = inner(1.0, g_r, 1.0, g_r)
  # Rounding can take it below 0 where the fit is exact.
  error = max(float(x @ A @ x - 2 * x @ b + wanted), 0.0)
  whole = np.zeros(len(used))
  whole[used] = x
  sizes = np.abs(np.linalg.eigvalsh(A))  # the singular values of a symmetric matrix, but sooner
  with np.errstate(divide="ignore"):
    condition = sizes.max() / sizes.min()
  return Fit(whole, float(np.sqrt(error / wanted)), float(condition))


def _usable(times: Numbers, sigma_rels: Sequence[int | float], t_r: Number) -> np.ndarray:
  """Which copies end at t_r or before: bool [n]; raises for copies and times that cannot be."""
  t = np.asarray(times, np.float64)
  if t.ndim != 1 or t.shape != np.shape(sigma_rels):
    raise ValueError(
      f"snapshot_times {t.shape} and snapshot_sigma_rels {np.shape(sigma_rels)} must be two lists "
      "of one length: one entry for each copy."
    )
  if len(t) < 2:
    raise ValueError(f"{len(t)} snapshots: a reconstruction needs at least 2.")
  if not (np.isfinite(t).all() and t.min() > 0):
    raise ValueError(f"Snapshot times must be finite and positive, got {t.min()} to {t.max()}.")
  if not t.min() <= t_r <= t.max():
    raise ValueError(
      f"t_r={t_r} must be from {t.min():g} to {t.max():g}, the times of the first and the last "
      "snapshot: what was trained outside of them is in no copy."
    )
  if len(set(zip(t.tolist(), sigma_rels, strict=True))) < len(t):
    raise ValueError("Two snapshots have the same time and length: give each once.")
  used = t <= t_r
  if used.sum() < 2:
    raise ValueError(f"t_r={t_r} has 1 snapshot up to it: a reconstruction needs at least 2.")
  return used
