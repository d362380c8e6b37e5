"""Which times: proposals p(t) for training, grids of noise levels for sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import trigflow
from cmjax.types import Array

# key, shape -> t in (0, pi/2), float32
SampleT = Callable[[Array, tuple[int, ...]], Array]


def lognormal(P_mean: float, P_std: float, *, sigma_data: float) -> SampleT:
  """t = arctan(e^tau / sigma_data) with tau ~ N(P_mean, P_std^2) (sCM, Algorithm 1).

  tau is the log of EDM's sigma. Not truncated at sigma_max (cmjax default: the paper mentions no
  truncation).
  """
  if P_std <= 0:
    raise ValueError(f"P_std={P_std} must be positive: it is the std of log sigma.")

  def sample_t(key, shape):
    tau = P_mean + P_std * jax.random.normal(key, shape)
    return trigflow.sigma_to_t(jnp.exp(tau), sigma_data=sigma_data)

  return sample_t


def karras_sigmas(
  n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
  """n noise levels from sigma_max down to sigma_min, without the final 0 (EDM, eq. 5).

  In float64 on the host: a sampler's times are constants of its program.

  >>> karras_sigmas(3, sigma_min=1.0, sigma_max=9.0, rho=2.0).tolist()
  [9.0, 4.0, 1.0]
  """
  if n < 2:
    raise ValueError(f"A grid needs at least 2 noise levels, got n={n}.")
  if not 0 < sigma_min < sigma_max:
    raise ValueError(f"Need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  return (high + np.arange(n) / (n - 1) * (low - high)) ** rho


def ode_times(n: int, *, sigma_data: float, **grid: float) -> np.ndarray:
  """The Karras grid as n angles and a final 0: the times of `samplers.heun` and `ddim`."""
  return np.append(np.arctan2(karras_sigmas(n, **grid), sigma_data), 0.0)


def consistency_times(*mid: float, sigma_data: float, sigma_max: float = 80.0) -> np.ndarray:
  """t_max = arctan(sigma_max / sigma_data), then the given *angles* (sCM, appendix G.2).

  The paper's second step is at the angle 1.1 for every data set (sigma 0.98, not 1.1).

  >>> consistency_times(1.1, sigma_data=0.5).round(4).tolist()
  [1.5645, 1.1]
  """
  return np.array([np.arctan2(sigma_max, sigma_data), *mid])
