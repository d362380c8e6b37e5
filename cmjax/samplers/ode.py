"""Samplers of diffusion models: along the ODE, or along the SDE by EDM's churn."""

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import trigflow
from cmjax.base.ranges import NonNegative, Positive
from cmjax.samplers.arguments import Times, check_times, fold_in, pairs, split, velocity
from cmjax.types import Array, Cond, NetFn, Params


def ddim(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """DDIM, one rotation per step (sCM, eq. 26); NFE is len(times) - 1. Arguments as `heun`."""
  angles = jnp.asarray(check_times(times, ends_in_zero=True))
  v = velocity(net, params, cond or {}, sigma_data)

  def step(x, ts):
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    return trigflow.step(x, v(x, ts[0]), t, s), None

  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  return jax.lax.scan(step, x, pairs(angles))[0]


def dpmpp_2m(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """DPM-Solver++(2M) of Lu et al. 2022 (sCM, eq. 28 with r < 0); NFE is len(times) - 1.

    x_s = DDIM(t -> s) + sin(t - s) / (2 r sin t) (D(x_t', t') - D(x_t, t))
    r = (log tan t - log tan t') / (log tan t - log tan s)

  with t' > t the step before. The first step, which has none, and the last to 0, where log tan is
  infinite, are DDIM (`lower_order_final` elsewhere). Arguments as `heun`, times below pi/2.
  """
  times = check_times(times, ends_in_zero=True, below_half_pi=True)
  log_tan = np.log(np.tan(times[:-1]))
  t, s = times[1:-2], times[2:-1]
  r = (log_tan[1:-1] - log_tan[:-2]) / (log_tan[1:-1] - log_tan[2:])
  second_order = np.sin(t - s) / (2 * r * np.sin(t))
  coefs = np.concatenate([[0.0], second_order, [0.0]])[: len(times) - 1]
  v = velocity(net, params, cond or {}, sigma_data)

  def step(carry, inputs):
    (x, D_before), (ts, coef) = carry, inputs
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    v_t = v(x, t)
    D = trigflow.denoise(x, v_t, t)
    return (trigflow.step(x, v_t, t, s) + coef * (D_before - D), D), None

  angles = jnp.asarray(times)
  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), (pairs(angles), jnp.asarray(coefs)))
  return x


def heun(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """EDM's Heun sampler, which is DPM-Solver-2S on TrigFlow (sCM, appendix B.1).

    x_p = DDIM(t -> s),   x_s = x_p - sin(t - s) / (2 cos t) (eps(x_p, s) - eps(x_t, t))

  with eps = sin(t) x_t + cos(t) v, and a plain DDIM step to 0. It equals EDM's algorithm on
  x_t / cos(t) to rounding; Heun directly on dx/dt in t is a different sampler.

  Args:
    net: the diffusion model's network.
    params: its weights.
    key: of the initial noise, sigma_data N(0, I) at times[0]; or [n] keys, one of each sample.
    shape: [n, *d] of the samples.
    times: n + 1 decreasing angles below pi/2 that end in 0, e.g.
      `times.ode_times(18)`; NFE is 2 n - 1.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional.

  Returns:
    x_0 [n, *d].
  """
  angles = jnp.asarray(check_times(times, ends_in_zero=True, below_half_pi=True))
  v = velocity(net, params, cond or {}, sigma_data)

  def step(x, ts):
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    return trigflow.heun_step(v, x, t, s), None

  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  x, _ = jax.lax.scan(step, x, pairs(angles[:-1]))
  last = jnp.full(len(x), angles[-2], x.dtype)
  return trigflow.denoise(x, v(x, angles[-2]), last)


def _churn(
  times: np.ndarray,
  sigma_data: float,
  S_churn: NonNegative,
  S_min: NonNegative,
  S_max: NonNegative,
  S_noise: Positive,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Per step: t_hat, and the factors of x_t and of z in x_t_hat (EDM, algorithm 2)."""
  if not (0 <= S_churn < np.inf and 0 <= S_min <= S_max and S_noise > 0):
    raise ValueError(
      "Churn needs S_churn >= 0, 0 <= S_min <= S_max and S_noise > 0, got "
      f"S_churn={S_churn}, S_min={S_min}, S_max={S_max}, S_noise={S_noise}."
    )
  sigmas = sigma_data * np.tan(times)
  inside = (S_min <= sigmas) & (sigmas <= S_max)
  gamma = np.where(inside, min(S_churn / len(times), np.sqrt(2) - 1), 0.0)
  # Adding a difference of 0 leaves a time that is not churned as it was, to the last bit.
  t_hat = times + (np.arctan2(sigmas * (1 + gamma), sigma_data) - np.arctan2(sigmas, sigma_data))
  added = sigmas * np.sqrt(gamma * (2 + gamma)) / sigma_data
  return t_hat, np.cos(t_hat) / np.cos(times), np.cos(t_hat) * added * S_noise


def stochastic(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
  S_churn: NonNegative = 40.0,
  S_min: NonNegative = 0.05,
  S_max: NonNegative = 50.0,
  S_noise: Positive = 1.003,
) -> Array:
  """EDM's stochastic sampler (Karras et al. 2022, algorithm 2), in TrigFlow coordinates.

  Before each `heun` step at a noise level in [S_min, S_max] noise is added, up to
  sigma_hat = (1 + gamma) sigma, gamma = min(S_churn / n, sqrt(2) - 1):

    x_hat = cos(t_hat) / cos(t) x_t + cos(t_hat) sqrt(sigma_hat^2 - sigma^2) S_noise eps

  With S_churn = 0 it is `heun` of the same key. The defaults are EDM's for ImageNet-64 with
  n = 256. The other arguments are those of `heun`.

  Args:
    net: the diffusion model's network.
    params: its weights.
    key: of the initial noise and of the churn; or [n] keys, one of each sample.
    shape: [n, *d] of the samples.
    times: n + 1 decreasing angles below pi/2 that end in 0; NFE is 2 n - 1.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional.
    S_churn: the amount of noise over all steps; 0 is deterministic.
    S_min: the lowest sigma (not angle) with churn.
    S_max: the highest.
    S_noise: inflates the added noise, against a denoiser that removes a little too much.

  Returns:
    x_0 [n, *d].
  """
  times = check_times(times, ends_in_zero=True, below_half_pi=True)
  t_hat, keep, add = _churn(times[:-1], sigma_data, S_churn, S_min, S_max, S_noise)
  v = velocity(net, params, cond or {}, sigma_data)
  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=jnp.asarray(times).dtype)
  # The start is that of `heun` with this key; fold_in makes the churn independent of it.
  keys = split(fold_in(key, 1), len(t_hat))
  coefs = jnp.asarray(np.stack([t_hat, times[1:], keep, add], -1))

  def churned(x, keep, add, key):
    return keep * x + add * trigflow.noise(key, shape, sigma_data=sigma_data, dtype=x.dtype)

  def step(x, inputs):
    (t, s, keep, add), key = inputs
    t, s = jnp.full((2, len(x)), jnp.stack([t, s])[:, None], x.dtype)
    return trigflow.heun_step(v, churned(x, keep, add, key), t, s), None

  x, _ = jax.lax.scan(step, x, (coefs[:-1], keys[:-1]))
  t, _, keep, add = coefs[-1]
  x = churned(x, keep, add, keys[-1])
  return trigflow.denoise(x, v(x, t), jnp.full(len(x), t, x.dtype))
