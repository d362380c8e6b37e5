"""Samplers: consistency models in one or more steps, diffusion teachers by DDIM or Heun.

All have one signature, `(net, params, key, shape, times, *, sigma_data, cond) -> x_0`: `net` is a
`NetFn`, `times` a decreasing sequence of angles known when the program is traced. Each evaluates
the network inside one `lax.scan`, so the program does not grow with the number of steps.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import trigflow
from cmjax.types import Array, Cond, NetFn, Params

Times = Sequence[float] | np.ndarray


def _check_times(times: Times, *, ends_in_zero: bool) -> np.ndarray:
  """The times as float64, or an error that says what is wrong with them."""
  times = np.asarray(times, np.float64)
  if times.ndim != 1 or not len(times) or np.any(np.diff(times) >= 0):
    raise ValueError(f"Sampler times must be a decreasing sequence of angles, got {times}.")
  if times[0] > np.pi / 2 or times[-1] < 0:
    raise ValueError(f"Sampler times are angles in [0, pi/2], got {times}: for EDM noise levels "
                     "use trigflow.sigma_to_t.")  # fmt: skip
  if ends_in_zero and (times[-1] != 0 or len(times) < 2):
    raise ValueError(f"An ODE sampler's times must end in 0, got {times}: append a 0.")
  if not ends_in_zero and times[-1] == 0:
    raise ValueError(f"A consistency model has nothing to do at t = 0, got {times}: drop the 0.")
  return times


def _velocity(net: NetFn, params: Params, cond: Cond, sigma_data: float):
  """x, t -> sigma_data F, for one t of the whole batch."""

  def v(x, t):
    return sigma_data * net(params, x / sigma_data, jnp.full(len(x), t, x.dtype), cond, None)

  return v


def consistency(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """Multistep sampling of a consistency model (Song et al. 2023, algorithm 1; sCM, G.2).

  From pure noise, alternately: x_t = cos(t) x_0 + sin(t) z with fresh noise, x_0 = f(x_t, t).

  Args:
    net: the consistency model's network.
    params: its weights.
    key: of all noise.
    shape: [n, *d] of the samples.
    times: one angle per step, e.g. `times.consistency_times(1.1)` for two steps.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional.

  Returns:
    x_0 [n, *d].
  """
  angles = jnp.asarray(_check_times(times, ends_in_zero=False))
  v = _velocity(net, params, cond or {}, sigma_data)

  def step(x0, inputs):
    t, key = inputs
    z = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=x0.dtype)
    t_batch = jnp.full(len(x0), t, x0.dtype)
    x_t = trigflow.interpolate(x0, z, t_batch)
    return trigflow.denoise(x_t, v(x_t, t), t_batch), None

  # From x_0 = 0 the first step starts at sin(t_max) z, which is cos(t_max) sigma_max eps.
  x0, _ = jax.lax.scan(
    step, jnp.zeros(shape, angles.dtype), (angles, jax.random.split(key, len(angles)))
  )
  return x0


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
  angles = jnp.asarray(_check_times(times, ends_in_zero=True))
  v = _velocity(net, params, cond or {}, sigma_data)

  def step(x, ts):
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    return trigflow.step(x, v(x, ts[0]), t, s), None

  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  return jax.lax.scan(step, x, jnp.stack([angles[:-1], angles[1:]], -1))[0]


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
    key: of the initial noise, sigma_data N(0, I) at times[0].
    shape: [n, *d] of the samples.
    times: n + 1 decreasing angles that end in 0, e.g. `times.ode_times(18)`; NFE is 2 n - 1.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional.

  Returns:
    x_0 [n, *d].
  """
  angles = jnp.asarray(_check_times(times, ends_in_zero=True))
  v = _velocity(net, params, cond or {}, sigma_data)

  def step(x, ts):
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    v_t = v(x, ts[0])
    x_p = trigflow.step(x, v_t, t, s)
    eps_t = trigflow.predict_noise(x, v_t, t)
    eps_s = trigflow.predict_noise(x_p, v(x_p, ts[1]), s)
    return x_p - jnp.sin(ts[0] - ts[1]) / (2 * jnp.cos(ts[0])) * (eps_s - eps_t), None

  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  x, _ = jax.lax.scan(step, x, jnp.stack([angles[:-2], angles[1:-1]], -1))
  last = jnp.full(len(x), angles[-2], x.dtype)
  return trigflow.denoise(x, v(x, angles[-2]), last)
