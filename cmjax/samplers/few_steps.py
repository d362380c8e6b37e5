"""Samplers of consistency models: jumps to t = 0, or to the lower end of a segment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import trigflow
from cmjax.base.ranges import SigmaOrZero
from cmjax.samplers.arguments import Times, check_times, pairs, split, velocity
from cmjax.types import Array, Cond, NetFn, Params


def _check_sigma_min(times: np.ndarray, sigma_min: float, sigma_data: float) -> None:
  last = sigma_data * np.tan(times[-1])
  if not 0 <= sigma_min <= last * (1 + 1e-6):
    raise ValueError(
      f"sigma_min={sigma_min} must be in [0, {last:.6g}], the last step's noise level: "
      "drop the steps below it."
    )


def refine(
  net: NetFn,
  params: Params,
  key: Array,
  x0: Array,
  times: Times,
  *,
  sigma_data: float,
  sigma_min: SigmaOrZero = 0.0,
  cond: Cond | None = None,
  project: Callable[[Array], Array] | None = None,
) -> Array:
  """Noise and denoise alternately, from a given x_0: what sampling and editing have in common.

  Per step x_t = cos(t) x_0 + sin(t) z with fresh noise, x_0 = project(f(x_t, t)). In EDM's
  coordinates the noise has variance sigma_1^2 first, then sigma_n^2 - sigma_min^2 (CM, algorithms
  1 and 4).

  Args:
    net: a consistency model's network, its `trigflow.denoise` is f.
    params: its weights.
    key: of all noise, or [n] keys, one of each sample.
    x0: where to start [n, *d]; 0 samples from nothing.
    times: one decreasing angle per step, above 0.
    sigma_data: std of data and noise.
    sigma_min: where f is the identity: 0 on TrigFlow, 0.002 for CM and iCT.
    cond: arrays of n entries, if the network is conditional.
    project: applied to x_0 after each step.

  Returns:
    x_0 [n, *d].

  Raises:
    ValueError: times are not decreasing angles in (0, pi/2], or fall below sigma_min.
  """
  times = check_times(times, ends_in_zero=False)
  _check_sigma_min(times, sigma_min, sigma_data)
  angles = jnp.asarray(times, x0.dtype)
  return alternate(
    net,
    params,
    key,
    x0,
    angles,
    sigma_data=sigma_data,
    sigma_min=sigma_min,
    cond=cond,
    project=project,
  )


def alternate(
  net: NetFn,
  params: Params,
  key: Array,
  x0: Array,
  angles: Array,
  *,
  sigma_data: float,
  sigma_min: SigmaOrZero = 0.0,
  cond: Cond | None = None,
  project: Callable[[Array], Array] | None = None,
) -> Array:
  """`refine` without its checks, for times that are traced: one program for all probes of a search.

  Arguments as in `refine`, but angles is an array [num_steps].
  """
  v = velocity(net, params, cond or {}, sigma_data)
  # The first step's noise has the variance sigma^2, every later one's sigma^2 - sigma_min^2; where
  # the last level is sigma_min itself, rounding may take that below 0.
  ratio = sigma_min / (sigma_data * jnp.tan(angles))
  scales = jnp.sqrt(jnp.maximum(1 - ratio**2, 0)).at[0].set(1.0)

  def step(x0, inputs):
    t, scale, key = inputs
    z = scale * trigflow.noise(key, x0.shape, sigma_data=sigma_data, dtype=x0.dtype)
    t_batch = jnp.full(len(x0), t, x0.dtype)
    x_t = trigflow.interpolate(x0, z, t_batch)
    x0 = trigflow.denoise(x_t, v(x_t, t), t_batch)
    return x0 if project is None else project(x0), None

  return jax.lax.scan(step, x0, (angles, scales, split(key, len(angles))))[0]


def consistency(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
  sigma_min: SigmaOrZero = 0.0,
) -> Array:
  """Multistep sampling of a consistency model (Song et al. 2023, algorithm 1; sCM, G.2).

  From pure noise, alternately: x_t = cos(t) x_0 + sin(t) z with fresh noise, x_0 = f(x_t, t).

  Args:
    net: the consistency model's network.
    params: its weights.
    key: of all noise, or [n] keys, one of each sample.
    shape: [n, *d] of the samples.
    times: one angle per step, e.g. `times.consistency_times(1.1)` for two steps.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional.
    sigma_min: as in `refine`.

  Returns:
    x_0 [n, *d].
  """
  # From x_0 = 0 the first step starts at sin(t_max) z, which is cos(t_max) sigma_max eps.
  x0 = jnp.zeros(shape, jnp.asarray(0.0).dtype)
  return refine(net, params, key, x0, times, sigma_data=sigma_data, sigma_min=sigma_min, cond=cond)


def segments(
  net: NetFn,
  params: Params,
  key: Array,
  shape: tuple[int, ...],
  times: Times,
  *,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """Multistep sCD: one deterministic step per segment (our reading: no sampler is published).

  The model of a segment jumps from any t in it to its lower end s, which it is told as
  cond["segment"]: x_s = cos(t - s) x_t - sin(t - s) sigma_data F(x_t / sigma_data, t, s).

  Args:
    net: the network of a multistep consistency model.
    params: its weights.
    key: of the initial noise, the only one; or [n] keys, one of each sample.
    shape: [n, *d] of the samples.
    times: the boundaries, decreasing to 0, e.g. `times.segment_times(4)`; NFE is one less.
    sigma_data: std of data and noise.
    cond: arrays of n entries, if the network is conditional; `segment` is filled in here.

  Returns:
    x_0 [n, *d].
  """
  if "segment" in (cond or {}):
    raise ValueError('cond["segment"] is set by the sampler from its times: leave it out of cond.')
  angles = jnp.asarray(check_times(times, ends_in_zero=True))

  def step(x, ts):
    t, s = jnp.full((2, len(x)), ts[:, None], x.dtype)
    v = velocity(net, params, {**(cond or {}), "segment": s}, sigma_data)
    return trigflow.step(x, v(x, t), t, s), None

  x = trigflow.noise(key, shape, sigma_data=sigma_data, dtype=angles.dtype)
  return jax.lax.scan(step, x, pairs(angles))[0]
