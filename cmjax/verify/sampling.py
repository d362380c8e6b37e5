"""Rows of what is done with a network: samplers, guidance, editing."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import editing, guidance, samplers, times, trigflow
from cmjax.samplers import conventions, search_times
from cmjax.types import NetFn
from cmjax.verify.table import Row, row
from cmjax.verify.truths import (
  F64,
  MEAN,
  OTHER_SD,
  SD,
  SHAPE,
  STDS,
  WAVE,
  along,
  edm_heun,
  f64,
  gaussian,
  mixture,
  on_device,
  params_of,
  plain,
  points,
  sums,
)


def _net_with_f(value) -> NetFn:
  """The F whose consistency function is `value(x_t, t)`."""

  def F(params, x, t, cond, key):
    xp = x.__array_namespace__()
    c, s = xp.cos(along(t, x)), xp.sin(along(t, x))
    return (c * SD * x - value(SD * x, along(t, x))) / (SD * s)

  return F


def _initial(angles, shape=(6, *SHAPE), sigma_data: float = SD):
  """The key of the samplers' rows, and the noise that they start from, in float64."""
  key = jax.random.key(7)
  return key, np.asarray(trigflow.noise(key, shape, sigma_data=sigma_data), np.float64)


def _dpmpp_2m(v, x, angles, sigma_data):
  """DPM-Solver++(2M) in EDM's coordinates, its first and last step of order 1, in float64."""
  sigmas, x, before = sigma_data * np.tan(angles), x / np.cos(angles[0]), None
  for i, (t, sigma, lower) in enumerate(zip(angles, sigmas, sigmas[1:], strict=False)):
    c, s = np.cos(t), np.sin(t)
    D = c * c * x - s * v(c * x, np.full(len(x), t))
    if lower == 0:
      return D
    h, target = np.log(sigma / lower), D
    if before is not None:
      r = np.log(sigmas[i - 1] / sigma) / h
      target = (1 + 1 / (2 * r)) * D - before / (2 * r)
    x, before = lower / sigma * x - np.expm1(-h) * target, D
  raise AssertionError("The times end in 0.")


def _ode_samplers() -> Iterator[Row]:
  true, shape = mixture(OTHER_SD), (6, *SHAPE)
  angles = np.append(np.arctan(np.array([80.0, 9.0, 2.5, 0.9, 0.3, 0.05]) / OTHER_SD), 0.0)
  key, x = _initial(angles, sigma_data=OTHER_SD)
  at = lambda t: np.full(len(x), t)
  ddim = x
  for t, s in zip(angles[:-1], angles[1:], strict=True):
    ddim = np.cos(t - s) * ddim - np.sin(t - s) * true.velocity(ddim, at(t))
  run = lambda sampler, **kwargs: sampler(
    true.F_diffusion, {}, key, shape, angles, sigma_data=OTHER_SD, **kwargs
  )
  yield row("ddim: rotations, in float64", run(samplers.ddim), ddim, 1e-3)
  heun = edm_heun(true.velocity, x, angles, OTHER_SD)
  yield row("heun: EDM's algorithm 1 in float64", run(samplers.heun), heun, 1e-3)
  multistep = _dpmpp_2m(true.velocity, x, angles, OTHER_SD)
  yield row("dpmpp_2m: in log sigma, float64", run(samplers.dpmpp_2m), multistep, 1e-3)
  no_churn = run(samplers.stochastic, S_churn=0.0)
  yield row("stochastic without churn is heun", no_churn, heun, 1e-3)


def _moments(name: str, samples, tolerance: float = 0.05) -> Iterator[Row]:
  """Mean and std of samples of the Gaussian, coordinate by coordinate, in units of its std."""
  x = np.asarray(samples, np.float64)
  yield row(f"{name}: mean", np.mean(x, 0) / STDS, MEAN / STDS, tolerance)
  yield row(f"{name}: std", np.std(x, 0) / STDS, np.ones(SHAPE), tolerance)


def _stochastic_samplers() -> Iterator[Row]:
  true, key, shape = gaussian(), jax.random.key(8), (4096, *SHAPE)
  angles = times.ode_times(32, sigma_data=SD)
  churned = samplers.stochastic(
    true.F_diffusion, {}, key, shape, angles, sigma_data=SD, S_churn=12.0, S_noise=1.0
  )
  yield from _moments("stochastic keeps the data's moments", churned, 0.08)
  steps = times.consistency_times(1.1, sigma_data=SD)
  two = samplers.consistency(true.F_consistency, {}, key, shape, steps, sigma_data=SD)
  yield from _moments("two consistency steps", two)


def _few_steps() -> Iterator[Row]:
  shape, key = (6, *SHAPE), jax.random.key(9)
  run = lambda F, steps, shape=shape, **kwargs: samplers.consistency(
    F, {}, key, shape, steps, sigma_data=SD, **kwargs
  )
  last = run(_net_with_f(lambda x, t: 0 * x + t), times.consistency_times(1.1, sigma_data=SD))
  yield row("consistency: the second step is at t = 1.1", last, np.full(shape, 1.1), 1e-4)
  f = _net_with_f(lambda x, t: jnp.where(t < 0.5, x, 0 * x))
  noisy = run(f, (1.2, 0.3), (2048, *SHAPE), sigma_min=0.1)
  added = SD * np.sin(0.3) * np.sqrt(1 - (0.1 / (SD * np.tan(0.3))) ** 2)
  yield row(
    "consistency: fresh noise sqrt(sigma^2 - sigma_min^2)", np.std(noisy), added, 0.03, unit=0.0
  )
  angles = times.segment_times(3, sigma_data=SD)
  ends = np.arctan(160) * np.array([1, 2 / 3, 1 / 3, 0])
  yield row("segment_times: uniform in t", angles, ends, 1e-6)
  key, x = _initial(angles)
  for t, s in zip(ends[:-1], ends[1:], strict=True):
    x = f64(lambda x, t, s=s: F64(x, t, {"segment": np.full(6, s)}), x, np.full(6, t), SD, s)
  ours = samplers.segments(plain, params_of()["net"], key, shape, angles, sigma_data=SD)
  yield row("segments: jumps told their lower end, float64", ours, x, 1e-4)


def _conventions() -> Iterator[Row]:
  golden = {((0, 11, 17), 18): 0.585, ((0, 22, 39), 40): 1.382, ((0, 106, 200), 201): 1.913}
  for (positions, steps), sigma in golden.items():
    angles = conventions.consistency_times_from_positions(positions, steps, sigma_data=SD)
    sigmas = SD * np.tan(angles)
    yield row(f"positions {positions} of {steps}", sigmas, [80.0, sigma], 1e-3, unit=0.0)
  angles = conventions.consistency_times_from_sigmas(80.0, 1.1, sigma_data=SD)
  yield row("consistency_times_from_sigmas: golden", angles, [1.5645464, 1.14417], 1e-5)
  found = search_times.search(lambda mid: (mid[0] - 0.8) ** 2, 2, low=0.1, high=1.5, num_probes=15)
  yield row("search finds a known minimum", found.times[0], 0.8, 0.05)


def _labelled(params, x, t, cond, key):
  return plain(params, x, t, cond, key) + 0.3 * along(cond["label"].astype(x.dtype), x) * x


def _guidance() -> Iterator[Row]:
  x, _, t, _ = points()
  label, scales = np.arange(6), np.linspace(0.5, 3.0, 6)
  x_, t_, scales_ = on_device(x, t, scales)
  cond = {"label": jnp.asarray(label)}
  params = params_of()["net"]
  F = lambda label: _labelled(WAVE, x, t, {"label": label}, None)
  F_u, F_c, w = F(np.full(6, -1)), F(label), along(scales, x)
  guided = guidance.classifier_free(_labelled, 1.7)(params, x_, t_, cond, None)
  yield row("classifier_free: F_u + w (F_c - F_u)", guided, F_u + 1.7 * (F_c - F_u), 1e-4)
  guided = guidance.classifier_free(_labelled)(params, x_, t_, cond | {"guidance": scales_}, None)
  yield row("classifier_free: a scale per sample", guided, F_u + w * (F_c - F_u), 1e-4)
  plain = guidance.classifier_free(_labelled, 1.0)(params, x_, t_, cond, None)
  yield row("classifier_free: w = 1 is no guidance", plain, F_c, 1e-4)
  guide = lambda params, x, t, cond, key: 0.5 * x
  auto = guidance.autoguidance(_labelled, guide, {}, 2.0)(params, x_, t_, cond, None)
  yield row("autoguidance: F_g + w (F - F_g)", auto, 0.5 * x + 2 * (F_c - 0.5 * x), 1e-4)
  only = guidance.interval(guide, _labelled, 0.4, 1.2)(params, x_, t_, cond, None)
  inside = along((t >= 0.4) & (t <= 1.2), x)
  yield row("interval: guided inside, plain outside", only, np.where(inside, 0.5 * x, F_c), 1e-4)


def _editing() -> Iterator[Row]:
  generator = np.random.default_rng(2)
  image, colour = 0.5 * generator.standard_normal((2, 3, 4, 4, 3))
  image_, colour_ = on_device(image, colour)
  F = _net_with_f(lambda x, t: colour_)  # the model draws this, whatever it is given
  steps, key = (1.2, 0.6), jax.random.key(4)
  mask = generator.random((3, 4, 4, 1)) < 0.5
  ours = editing.inpaint(F, {}, key, image_, jnp.asarray(mask), steps, sigma_data=SD)
  yield row("inpaint: the model's inside the mask", ours, np.where(mask, colour, image), 1e-4)
  q = np.array([0.2989, 0.5870, 0.1140])
  gray = np.sum((image - colour) * q, -1, keepdims=True) / np.sum(q**2)
  ours = editing.colorize(F, {}, key, image_, steps, sigma_data=SD)
  yield row("colorize: the image's gray value", ours, colour + gray * q, 1e-4)
  blocks = (image - colour).reshape(3, 2, 2, 2, 2, 3).mean((2, 4))
  means = blocks.repeat(2, 1).repeat(2, 2)
  ours = editing.super_resolve(F, {}, key, image_, 2, steps, sigma_data=SD)
  yield row("super_resolve: the image's patch means", ours, colour + means, 1e-4)
  same = _net_with_f(lambda x, t: x)
  big = jnp.ones((64, 4, 4, 3))
  ours = editing.stroke_to_image(same, {}, key, big, (1.2,), sigma_data=SD)
  yield row("stroke_to_image: noise at the first t", np.std(ours), SD * np.sin(1.2), 0.03, unit=0.0)
  everywhere = jnp.ones((1, 4, 4, 1), bool)
  ours = editing.inpaint(same, {}, key, big, everywhere, (1.2,), sigma_data=SD)
  yield row(
    "inpaint: noise at T, as in Algorithm 4", np.std(ours), SD * np.sin(1.2), 0.03, unit=0.0
  )


def _interpolation() -> Iterator[Row]:
  a, b, _, _ = points()
  w = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.4])
  norms = np.sqrt(sums(a**2) * sums(b**2))
  psi = np.arccos(sums(a * b) / norms)
  mix = [along(np.sin(u * psi) / np.sin(psi), a) for u in (1 - w, w)]
  slerped = mix[0] * a + mix[1] * b
  yield row("slerp: along the great circle", editing.slerp(*on_device(a, b, w)), slerped, 1e-4)
  true = gaussian()
  a_, b_ = on_device(a, b)
  ours = editing.interpolate(true.F_consistency, {}, a_, b_, 3, t=1.5, sigma_data=SD)
  half = (a + b) / along(2 * np.cos(psi / 2), a)
  t = np.full(6, 1.5)
  exact = np.stack([true.consistency(np.sin(1.5) * z, t) for z in (a, half, b)])
  yield row("interpolate: exact f of the slerped noise", ours, exact, 1e-4)


CHECKS = {
  "samplers": (_ode_samplers,),
  "moments": (_stochastic_samplers,),
  "few_steps": (_few_steps, _conventions),
  "guidance": (_guidance,),
  "editing": (_editing, _interpolation),
}
