"""Which times: proposals p(t) and pairs of levels for training, grids for sampling.

Methods in discrete time compare two neighbouring noise levels. Which levels there are (N of them,
growing with the step by a curriculum) and which neighbours are drawn is decided here, in EDM's
sigma as in the papers. Everything depends on N by formula, so N may be traced and a program serves
the whole curriculum.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from cmjax import trigflow
from cmjax.base.ranges import Count, Exponent, LogSigma, NonNegative, Range, Sigma, Spread
from cmjax.types import Array

Intervals = Annotated[int, Range(1, 2**20)]
Levels = Annotated[int, Range(2, 2**20)]

# key, shape -> t in (0, pi/2), float32
SampleT = Callable[[Array, tuple[int, ...]], Array]

# key, shape, step -> sigma, sigma_next, with sigma > sigma_next >= 0, float32
SamplePair = Callable[[Array, tuple[int, ...], ArrayLike], tuple[Array, Array]]

# step -> N, the number of levels (one more than there are intervals), int32
Curriculum = Callable[[ArrayLike], Array]


def _check_P_std(P_std: float) -> None:
  if P_std <= 0:
    raise ValueError(f"P_std={P_std} must be positive: it is the std of log sigma.")


def lognormal(P_mean: LogSigma, P_std: Spread, *, sigma_data: float) -> SampleT:
  """t = arctan(e^tau / sigma_data) with tau ~ N(P_mean, P_std^2) (sCM, Algorithm 1).

  tau is the log of EDM's sigma. Not truncated at sigma_max (cmjax default: the paper mentions no
  truncation).
  """
  _check_P_std(P_std)

  def sample_t(key, shape):
    tau = P_mean + P_std * jax.random.normal(key, shape)
    return trigflow.sigma_to_t(jnp.exp(tau), sigma_data=sigma_data)

  return sample_t


def _check_range(sigma_min: float, sigma_max: float) -> None:
  if not 0 < sigma_min < sigma_max:
    raise ValueError(f"Need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")


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
  _check_range(sigma_min, sigma_max)
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


def karras_sigma(
  i: ArrayLike,
  N: ArrayLike,
  *,
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
) -> Array:
  """Level i of N, from sigma_min at i = 0 *up* to sigma_max at N - 1 (CM, section 2).

  The order of the consistency papers, counted from 0; i and N may be traced.
  """
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  return (low + jnp.asarray(i) / (jnp.asarray(N) - 1) * (high - low)) ** rho


def fixed(N: Levels) -> Curriculum:
  """Always N levels: 18 and 40 in consistency distillation."""
  if N < 2:
    raise ValueError(f"A pair needs at least 2 noise levels, got N={N}.")
  return lambda step: jnp.full(jnp.shape(step), N, jnp.int32)


def _check_curriculum(total_steps: int, s0: int, s1: int, least: int) -> None:
  if total_steps < 1:
    raise ValueError(f"A curriculum needs the length of training, got total_steps={total_steps}.")
  if not least <= s0 <= s1:
    raise ValueError(
      f"A curriculum goes up from s0 >= {least} to s1 >= s0, got s0={s0} and s1={s1}; for one "
      "constant number of levels take `fixed`."
    )


def square_root(total_steps: Count, s0: Levels = 2, s1: Levels = 150) -> Curriculum:
  """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (CM, appendix C), then s1 + 1.

  Examples:
    >>> [int(square_root(800_000)(k)) for k in (0, 200_000, 800_000)]
    [2, 76, 151]

  Args:
    total_steps: K, after which N stays.
    s0: levels at the start.
    s1: intervals at the end; 150, and 200 on ImageNet 64x64.
  """
  _check_curriculum(total_steps, s0, s1, least=2)
  # The steps at which N grows, from whole numbers: in float32 the root would miss some by one.
  span = (s1 + 1) ** 2 - s0**2
  growth = np.array([(n**2 - s0**2) * total_steps // span + 1 for n in range(s0, s1 + 1)], np.int32)

  def curriculum(step):
    return (s0 + jnp.searchsorted(growth, jnp.asarray(step), side="right")).astype(jnp.int32)

  return curriculum


def doubling(total_steps: Count, s0: Intervals = 10, s1: Intervals = 1280) -> Curriculum:
  """N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2 floor(s1/s0) + 1)) (iCT, 3.4).

  Examples:
    >>> [int(doubling(400_000)(k)) for k in (0, 49_999, 50_000, 400_000)]
    [11, 11, 21, 1281]

  Args:
    total_steps: K.
    s0: intervals at the start.
    s1: intervals at the end.
  """
  _check_curriculum(total_steps, s0, s1, least=1)
  stages = math.log2(s1 // s0) + 1
  steps_per_stage = math.floor(total_steps / stages)
  if steps_per_stage < 1:
    raise ValueError(
      f"Doubling from s0={s0} to s1={s1} takes {math.ceil(stages)} stages, more than "
      f"total_steps={total_steps}: train for longer or lower s1."
    )
  last = math.ceil(math.log2(s1 / s0))  # no need to double further, nor room in an int32

  def curriculum(step):
    stage = jnp.minimum(jnp.asarray(step) // steps_per_stage, last)
    return (jnp.minimum(s0 * 2**stage, s1) + 1).astype(jnp.int32)

  return curriculum


def uniform_pairs(
  curriculum: Curriculum, *, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Exponent = 7.0
) -> SamplePair:
  """The ends of one of the N - 1 intervals of the Karras grid, all equally likely (CM)."""
  _check_range(sigma_min, sigma_max)
  grid = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

  def sample_pair(key, shape, step):
    N = curriculum(step)
    i = jax.random.randint(key, shape, 0, N - 1)
    return karras_sigma(i + 1, N, **grid), karras_sigma(i, N, **grid)

  return sample_pair


def _lognormal_interval(
  P_mean: float, P_std: float, *, sigma_min: float, sigma_max: float, rho: float
) -> Callable[[Array, tuple[int, ...], ArrayLike], Array]:
  """key, shape, N -> i, with p(i) the mass of a lognormal between levels i and i + 1 of N."""
  _check_P_std(P_std)
  _check_range(sigma_min, sigma_max)
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  z_min, z_max = ((math.log(sigma) - P_mean) / P_std for sigma in (sigma_min, sigma_max))

  def sample_i(key, shape, N):
    # The law telescopes: i is the bin of one draw of the lognormal cut to [sigma_min, sigma_max].
    u = jax.random.uniform(key, shape, minval=ndtr(z_min), maxval=ndtr(z_max))
    sigma = jnp.exp(P_mean + P_std * ndtri(u))
    i = jnp.floor((sigma ** (1 / rho) - low) / (high - low) * (N - 1))
    return jnp.clip(i, 0, N - 2).astype(jnp.int32)

  return sample_i


def lognormal_pairs(
  curriculum: Curriculum,
  P_mean: LogSigma = -1.1,
  P_std: Spread = 2.0,
  *,
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
) -> SamplePair:
  """The ends of an interval of the Karras grid, drawn by the lognormal's mass in it (iCT, 3.5).

  p(i) ~ erf((ln sigma_{i+1} - P_mean) / (sqrt(2) P_std)) - erf((ln sigma_i - P_mean) / ...)
  """
  grid = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
  sample_i = _lognormal_interval(P_mean, P_std, **grid)

  def sample_pair(key, shape, step):
    N = curriculum(step)
    i = sample_i(key, shape, N)
    return karras_sigma(i + 1, N, **grid), karras_sigma(i, N, **grid)

  return sample_pair


def ect_pairs(
  P_mean: LogSigma = -1.1,
  P_std: Spread = 2.0,
  *,
  q: Annotated[float, Range(1, 1e6, "(]")] = 2.0,
  k: NonNegative = 8.0,
  b: NonNegative = 1.0,
  steps_per_stage: Count | None = None,
  num_stages: Count | None = None,
  mapping: str = "sigmoid",
) -> SamplePair:
  """A lognormal level and one below it that comes nearer stage by stage (ECT, arXiv 2406.14548).

    sigma_next = max(0, sigma (1 - q^-(stage + 1) n)),  n = 1 + k sigmoid(-b sigma), or 1

  With q = 2 the first stage has sigma_next = 0 for all sigma below about 2: diffusion training.

  Args:
    P_mean: mean of log sigma; -0.8 on ImageNet 64x64.
    P_std: std of log sigma; 1.6 there.
    q: by what the relative gap shrinks per stage.
    k: how much wider the gap is at small sigma.
    b: how fast that fades.
    steps_per_stage: stage = step // steps_per_stage. The released code counts ticks,
      (tick - 1) // double_ticks; its 250 ticks of 12 800 images at batch 128 are 25 000 steps.
      None: stage 0 throughout (the one-hour recipe, with q = 256).
    num_stages: after so many the gap stays; None: it shrinks on, and float32 tells the levels
      apart for some ten doublings.
    mapping: n above: "sigmoid", or "constant" for 1.
  """
  _check_P_std(P_std)
  if q <= 1:
    raise ValueError(f"q={q} must be above 1: the relative gap is q^-(stage + 1).")
  if mapping not in ("sigmoid", "constant"):
    raise ValueError(f"Unknown mapping {mapping!r}. Choose from: sigmoid, constant.")
  for name, value in (("steps_per_stage", steps_per_stage), ("num_stages", num_stages)):
    if value is not None and value < 1:
      raise ValueError(f"{name}={value} must be at least 1, or None.")

  def sample_pair(key, shape, step):
    sigma = jnp.exp(P_mean + P_std * jax.random.normal(key, shape))
    stage = jnp.asarray(step) // steps_per_stage if steps_per_stage else jnp.zeros((), jnp.int32)
    if num_stages is not None:
      stage = jnp.minimum(stage, num_stages - 1)
    n = 1 + k * jax.nn.sigmoid(-b * sigma) if mapping == "sigmoid" else 1.0
    gap = q ** -(stage + 1.0) * n
    return sigma, jnp.maximum(0.0, sigma * (1 - gap))

  return sample_pair


def _angles(num_levels: int, *, sigma_data: float, **grid: Any) -> np.ndarray:
  """The grid of dsCM, increasing: 0 in place of sigma_min, then num_levels angles."""
  sigmas = karras_sigmas(num_levels + 1, **grid)[::-1]
  angles = np.arctan2(sigmas, sigma_data).astype(np.float32)
  return np.concatenate([np.zeros(1, np.float32), angles[1:]])


def binned_lognormal(
  P_mean: LogSigma,
  P_std: Spread,
  *,
  sigma_data: float,
  num_levels: Intervals = 1024,
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
) -> SampleT:
  """t on the grid of discrete-time sCM, each by the lognormal's mass in the interval below it.

  The grid has num_levels intervals of Karras' spacing and t_0 = 0 (sCM, appendix E); `below` gives
  the other end. No curriculum (cmjax default: the paper mentions none).
  """
  grid = dict(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
  angles = _angles(num_levels, sigma_data=sigma_data, **grid)
  sample_i = _lognormal_interval(P_mean, P_std, **grid)
  return lambda key, shape: jnp.asarray(angles)[sample_i(key, shape, num_levels + 1) + 1]


def below(
  t: Array,
  *,
  sigma_data: float,
  num_levels: Intervals = 1024,
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
) -> Array:
  """The highest angle of `binned_lognormal`'s grid that is lower than t; 0 below them all."""
  angles = _angles(
    num_levels, sigma_data=sigma_data, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho
  )
  i = jnp.searchsorted(angles, t, side="left") - 1
  return jnp.asarray(angles)[jnp.maximum(i, 0)]


def segment_times(num_segments: int, *, sigma_data: float, sigma_max: float = 80.0) -> np.ndarray:
  """Boundaries of multistep sCD, uniform in t from t_max to 0: the times of `samplers.segments`.

  t_max = arctan(sigma_max / sigma_data) (cmjax default, as in edm2_sCM; the paper of sCM has only
  results of its multistep sCD).

  >>> segment_times(2, sigma_data=0.5).round(4).tolist()
  [1.5645, 0.7823, 0.0]
  """
  if num_segments < 1:
    raise ValueError(f"Multistep sCD has at least one segment, got num_segments={num_segments}.")
  return np.linspace(np.arctan2(sigma_max, sigma_data), 0.0, num_segments + 1)
