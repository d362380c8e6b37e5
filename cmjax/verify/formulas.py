"""Rows of the single formulas: TrigFlow, times, weightings, averages, EDM, distances, tangents."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import distances, edm, ema, tangent, times, trigflow, weighting
from cmjax.verify.table import Row, row
from cmjax.verify.truths import (
  F64,
  OTHER_SD,
  SD,
  SHAPE,
  WAVE,
  along,
  df64,
  edm_heun,
  f64,
  f_shifted,
  gaussian,
  mixture,
  on_device,
  params_of,
  plain,
  points,
  sums,
  wave,
)


def _process() -> Iterator[Row]:
  x0, z, t, s = points()
  x0_, z_, t_, s_ = on_device(x0, z, t, s)
  c, sine = along(np.cos(t), x0), along(np.sin(t), x0)
  x_t, v = c * x0 + sine * z, c * z - sine * x0
  there = np.cos(along(s, x0)) * x0 + np.sin(along(s, x0)) * z
  yield row("x_t = cos(t) x0 + sin(t) z", trigflow.interpolate(x0_, z_, t_), x_t)
  yield row("velocity is d x_t / dt", trigflow.velocity(x0_, z_, t_), v)
  x_t_, v_ = on_device(x_t, v)
  yield row("a step along the circle lands on x_s", trigflow.step(x_t_, v_, t_, s_), there)
  yield row("predict_noise inverts x_t, v", trigflow.predict_noise(x_t_, v_, t_), z)
  yield row("denoise inverts x_t, v", trigflow.denoise(x_t_, v_, t_), x0)
  draws = trigflow.noise(jax.random.key(0), (4096, *SHAPE), sigma_data=SD)
  yield row("std of the noise is sigma_data", jnp.std(draws), SD, 0.02, unit=0.0)


def _models() -> Iterator[Row]:
  x, _, t, _ = points()
  x_, t_ = on_device(x, t)
  for sd in (SD, OTHER_SD):
    true = mixture(sd)
    v_ = sd * true.F_diffusion({}, x_ / sd, t_, {}, None)
    E_x0 = true.posterior_mean(x, t)
    yield row(f"F_diffusion denoises to E[x0 | x_t], sd {sd}", trigflow.denoise(x_, v_, t_), E_x0)
    score = trigflow.score(x_, v_, t_, sigma_data=sd)
    yield row(f"score of a mixture, sd {sd}", score, true.score(x, t), 1e-4)
  true = gaussian()
  v_ = SD * true.F_consistency({}, x_ / SD, t_, {}, None)
  yield row("F_consistency gives the exact f", trigflow.denoise(x_, v_, t_), true.consistency(x, t))
  E_z = (x - along(np.cos(t), x) * true.posterior_mean(x, t)) / along(np.sin(t), x)
  v_ = SD * true.F_diffusion({}, x_ / SD, t_, {}, None)
  yield row("predict_noise is E[z | x_t]", trigflow.predict_noise(x_, v_, t_), E_z, 1e-4)


def _levels() -> Iterator[Row]:
  sigmas, angles = [80.0, 0.002, 1.1, 0.821], [1.5645464, 0.0039999787, 1.14417, 1.02378]
  to_t = trigflow.sigma_to_t(jnp.asarray(sigmas), sigma_data=SD)
  yield row("sigma_to_t: golden values", to_t, angles, 1e-5, unit=0.0)
  to_sigma = trigflow.t_to_sigma(jnp.asarray([1.1]), sigma_data=SD)
  yield row("t_to_sigma(1.1): golden value", to_sigma, [0.98238], 1e-5, unit=0.0)
  back = trigflow.t_to_sigma(
    trigflow.sigma_to_t(jnp.asarray(sigmas), sigma_data=OTHER_SD), sigma_data=OTHER_SD
  )
  yield row("t_to_sigma inverts sigma_to_t", back, sigmas, 1e-3, unit=0.0)


def _heun_step() -> Iterator[Row]:
  x, _, t, s = points()
  v = mixture(OTHER_SD).velocity
  steps = [
    edm_heun(v, x[i : i + 1], np.array([t[i], s[i]]), OTHER_SD, to_zero=False) for i in range(6)
  ]
  ours = trigflow.heun_step(v, *on_device(x, t, s))
  yield row("heun_step is EDM's Heun in sigma", ours, np.concatenate(steps), 1e-4)


def _draw(sample, n: int = 40_000) -> np.ndarray:
  return np.asarray(sample(jax.random.key(5), (n,)), np.float64)


def _proposals() -> Iterator[Row]:
  t = _draw(times.lognormal(-1.0, 1.4, sigma_data=SD))
  yield row("lognormal: median of t", np.median(t), 0.634, 0.02, unit=0.0)
  yield row("lognormal: P(t > 1.1)", np.mean(t > 1.1), 0.241, 0.05, unit=0.0)


SIGMAS_11 = (
  2.00000000e-03, 1.67207532e-02, 8.50872027e-02, 3.18283289e-01, 9.65416926e-01, 2.51521898e00,
  5.83894763e00, 1.23815761e01, 2.44083418e01, 4.53137341e01, 8.00000000e01,
)  # fmt: skip


P_11 = (
  0.06263299, 0.18173698, 0.24550142, 0.21349445, 0.14244606, 0.08060462, 0.04107991, 0.01958009,
  0.00894387, 0.00397961,
)  # fmt: skip


def _grids() -> Iterator[Row]:
  yield row("karras_sigmas(11): golden", times.karras_sigmas(11), SIGMAS_11[::-1], 1e-7, unit=0.0)
  angles = np.append(np.arctan(np.array(SIGMAS_11[::-1]) / SD), 0.0)
  yield row("ode_times: their angles and 0", times.ode_times(11, sigma_data=SD), angles, 1e-7)
  steps = times.consistency_times(1.1, sigma_data=SD)
  yield row("consistency_times: t_max, then an angle", steps, [1.5645464, 1.1], 1e-6)


def _levels_and_curricula() -> Iterator[Row]:
  i = jnp.arange(11)
  yield row("karras_sigma(i, 11): golden", times.karras_sigma(i, 11), SIGMAS_11, 1e-4, unit=0.0)
  some = times.karras_sigma(jnp.asarray([0, 1, 2, 492, 571, 640, 1280]), 1281)
  golden = [0.002, 0.00203909, 0.00207882, 0.8208668413, 1.5257662439, 2.5152189761, 80.0]
  yield row("karras_sigma(i, 1281): golden", some, golden, 1e-4, unit=0.0)
  N = times.square_root(800_000)(jnp.asarray([0, 200_000, 800_000]))
  yield row("square_root: N(k), golden", N, [2, 76, 151], 0.0)
  N = times.doubling(400_000)(jnp.asarray([0, 49_999, 50_000, 350_000, 400_000]))
  yield row("doubling: N(k), golden", N, [11, 11, 21, 1281, 1281], 0.0)
  yield row("fixed: N", times.fixed(18)(jnp.asarray([0, 9])), [18, 18], 0.0)


def _pairs(sample_pair, step: int = 0, n: int = 40_000):
  return [np.asarray(a, np.float64) for a in sample_pair(jax.random.key(5), (n,), step)]


def _level_pairs() -> Iterator[Row]:
  grid = np.array(SIGMAS_11)
  uniform = np.full(10, 0.1)
  for name, sample_pair, p in (
    ("uniform_pairs", times.uniform_pairs(times.fixed(11)), uniform),
    ("lognormal_pairs", times.lognormal_pairs(times.fixed(11)), np.array(P_11)),
  ):
    sigma, lower = _pairs(sample_pair)
    i = np.argmin(np.abs(np.log(lower[:, None] / grid)), -1)
    yield row(f"{name}: neighbours on the grid", sigma, grid[np.minimum(i + 1, 10)], 1e-4, unit=0.0)
    shares = np.bincount(i, minlength=10)[:10] / len(i)
    yield row(f"{name}: how often each interval", shares, p, 0.01)
  sigma, _ = _pairs(times.uniform_pairs(times.doubling(400_000)), step=350_000)
  i = ((sigma ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7)) * 1280).round()
  yield row("uniform_pairs: the curriculum's last N", [i.min(), i.max()], [1, 1280], 0.0)
  for q, step, golden in (
    (2.0, 0, [0, 0, 0, 0, 2.366143, 10, 40]),
    (2.0, 2, [0.003775, 0.039998, 0.248730, 0.606059, 4.341536, 17.5, 70]),
    (256.0, 0, [0.009805, 0.098125, 0.492148, 0.987689, 4.979423, 19.921875, 79.6875]),
  ):
    lower = [
      _pairs(times.ect_pairs(math.log(t), 1e-7, q=q, steps_per_stage=1), step, n=1)[1][0]
      for t in (0.01, 0.1, 0.5, 1, 5, 20, 80)
    ]
    yield row(f"ect_pairs: golden r, q={q:.0f}, stage {step}", lower, golden, 2e-4)
  constant = times.ect_pairs(q=4.0, mapping="constant")
  sigma, lower = _pairs(constant, n=6)
  yield row("ect_pairs, constant: r = t (1 - 1/q)", lower, 0.75 * sigma, 1e-5, unit=0.0)


def _discrete_grid() -> Iterator[Row]:
  """dsCM's: t_0 = 0, then arctan of Karras levels 1..N."""
  angles = np.append(0.0, np.arctan(np.array(SIGMAS_11[1:]) / SD))
  t = _draw(times.binned_lognormal(-1.1, 2.0, sigma_data=SD, num_levels=10))
  i = np.argmin(np.abs(t[:, None] - angles), -1)
  yield row("binned_lognormal: on the grid", t, angles[i], 1e-5)
  shares = np.bincount(i, minlength=11)[1:] / len(i)
  yield row("binned_lognormal: how often each level", shares, P_11, 0.01)
  lower = times.below(jnp.asarray(angles[1:], jnp.float32) + 1e-4, sigma_data=SD, num_levels=10)
  yield row("below: between two levels, the lower one", lower, angles[1:], 1e-5)
  on = jnp.unique(jnp.asarray(t, jnp.float32))
  lower = times.below(on, sigma_data=SD, num_levels=10)
  yield row("below: on a level, the next lower one", lower, angles[: len(on)], 1e-5)


def _weightings() -> Iterator[Row]:
  t = jnp.linspace(0.1, 1.5, 6)
  yield row("constant weighting: w = 0", weighting.constant().apply({}, t), np.zeros(6))
  w = weighting.inverse_sigma(sigma_data=SD).apply({}, t)
  yield row("inverse_sigma: e^w = 1 / sigma", np.exp(w) * SD * np.tan(t), np.ones(6), 1e-4)
  learned = weighting.learned(bias=1.5)
  w = learned.apply(learned.init(jax.random.key(0)), t)
  yield row("learned weighting starts at its bias", w, np.full(6, 1.5))


def _averages() -> Iterator[Row]:
  decay = ema.half_life(500_000, batch_size=512, rampup_ratio=None)
  yield row(
    "half_life: beta at batch 512", 1 - decay(0), 1 - 0.5 ** (512 / 500_000), 1e-3, unit=0.0
  )
  decays = {"main": ema.half_life(64, batch_size=64, rampup_ratio=None)}
  halves = ema.update({"main": {"w": jnp.zeros(2)}}, {"w": jnp.ones(2)}, 3, decays)["main"]["w"]
  yield row("update: half of the way in a half-life", halves, np.full(2, 0.5))
  yield row("constant: beta", ema.constant(0.9999)(7), 0.9999, 1e-6)
  gammas = [ema.power_gamma(sigma_rel) for sigma_rel in (0.05, 0.1, 0.2)]
  yield row("power_gamma: golden", gammas, [16.972199, 6.937204, 1.826214], 1e-3, unit=0.0)
  beta = ema.power(0.05, 64)(jnp.asarray([0, 1, 99]))
  k = np.array([1, 2, 100])
  yield row("power: beta = (1 - 1/k)^(gamma + 1)", beta, (1 - 1 / k) ** 17.9722, 1e-4)
  for convention, mu in (
    ("paper", [0.9, 0.997231, 0.998605]),
    ("openai", [0.81, 0.997194, 0.998596]),
  ):
    decay = ema.curriculum(times.square_root(800_000), 2, 0.9, convention)
    ours = decay(jnp.asarray([0, 200_000, 800_000]))
    yield row(
      f"curriculum: mu(k), {convention}, golden", 1 - ours, 1 - np.array(mu), 2e-3, unit=0.0
    )
  ramp = ema.half_life(10**9, batch_size=64, rampup_ratio=0.05)
  yield row("half_life: ramp-up", [ramp(0), ramp(10)], [0.0, 0.5**2], 1e-5)


def _preconditioning() -> Iterator[Row]:
  sigma = jnp.asarray([0.002, 0.5, 80.0])
  golden = edm.precondition(sigma, sigma_data=SD, sigma_min=0.002)
  yield row("c_skip: golden, shifted", golden.c_skip, [1, 0.50200394, 3.90629e-5], 1e-5, unit=0.0)
  yield row("c_out: golden, shifted", golden.c_out, [0, 0.35213918, 0.49997773], 1e-5, unit=0.0)
  yield row("c_in: golden", golden.c_in, [1.999984, 1.41421356, 0.01249976], 1e-5, unit=0.0)
  c_noise = [-1.55365202, -0.17328680, 1.09550666]
  yield row("c_noise = ln(sigma) / 4: golden", edm.c_noise(sigma), c_noise, 1e-5, unit=0.0)
  ours = edm.precondition(sigma, sigma_data=OTHER_SD)
  s, squared = np.asarray(sigma, np.float64), np.asarray(sigma, np.float64) ** 2 + OTHER_SD**2
  c_skip, c_out = OTHER_SD**2 / squared, OTHER_SD * s / np.sqrt(squared)
  yield row("c_skip, sd 0.7", ours.c_skip, c_skip, 1e-5, unit=0.0)
  yield row("c_out, sd 0.7", ours.c_out, c_out, 1e-5, unit=0.0)
  # Unit variance in, unit variance of the target out.
  yield row("c_in^2 Var[x] = 1", ours.c_in**2 * squared, np.ones(3), 1e-5)
  target = ((1 - ours.c_skip) ** 2 * OTHER_SD**2 + ours.c_skip**2 * s**2) / ours.c_out**2
  yield row("Var of the target of F_EDM = 1", target, np.ones(3), 1e-3)


def _edm_networks() -> Iterator[Row]:
  sd = OTHER_SD
  x, _, t, _ = points()
  sigma = sd * np.tan(t)
  x_, t_, sigma_ = on_device(x, t, sigma)
  F_EDM = lambda params, x, c_noise, cond, key: wave(WAVE, x, c_noise, cond, None)
  ours = edm.as_trigflow(F_EDM, sigma_data=sd)({}, x_, t_, {}, None)
  yield row("as_trigflow: -F_EDM(x, ln(sigma) / 4)", ours, -F64(x, np.log(sigma) / 4), 1e-4)
  true, cos = mixture(sd), along(np.cos(t), x)
  D = edm.as_edm(true.F_diffusion, sigma_data=sd)({}, x_, sigma_, {}, None)
  yield row("as_edm: D = E[x0 | x_sigma]", D, true.posterior_mean(cos * x, t), 1e-4)
  both = edm.as_edm(edm.as_trigflow(F_EDM, sigma_data=sd), sigma_data=sd)
  c_in, c_skip = (along(c, x) for c in (1 / np.hypot(sigma, sd), sd**2 / (sigma**2 + sd**2)))
  truth = c_skip * x + along(sigma, x) * sd * c_in * F64(c_in * x, np.log(sigma) / 4)
  yield row(
    "D = c_skip x + c_out F_EDM(c_in x, c_noise)", both({}, x_, sigma_, {}, None), truth, 1e-4
  )


def _edm_consistency() -> Iterator[Row]:
  x, F, t, _ = points()
  x_, F_, t_ = on_device(x, F, t)
  for sigma_min in (0.0, 0.05):
    ours = edm.consistency(F_, x_, t_, sigma_data=SD, sigma_min=sigma_min)
    truth = f_shifted(F, x, t, sigma_min)
    yield row(f"consistency: CM's f, sigma_min {sigma_min}", ours, truth, 1e-4)
  at = np.full(6, np.arctan(0.05 / SD))
  ours = edm.consistency(F_, x_, jnp.asarray(at, jnp.float32), sigma_data=SD, sigma_min=0.05)
  yield row("consistency: f(x, sigma_min) = x", ours, x / np.cos(at[0]), 1e-5)
  F_new = edm.shifted(plain, sigma_data=SD, sigma_min=0.05)(
    params_of()["net"], x_ / SD, t_, {}, None
  )
  truth = f_shifted(F64(x / SD, t), x, t, 0.05)
  yield row("shifted: its denoise is CM's f", trigflow.denoise(x_, SD * F_new, t_), truth, 1e-4)


def _distances() -> Iterator[Row]:
  a, b, _, _ = points()
  a_, b_ = on_device(a, b)
  squared = sums((a - b) ** 2)
  yield row("squared_l2: the sum", distances.squared_l2()(a_, b_), squared)
  yield row("l1: the sum", distances.l1()(a_, b_), sums(np.abs(a - b)))
  yield row("l2: not squared", distances.l2()(a_, b_), np.sqrt(squared), 1e-4)
  huber = distances.pseudo_huber(0.03)(a_, b_)
  yield row("pseudo_huber: of the image's norm", huber, np.sqrt(squared + 0.03**2) - 0.03)
  pair = jnp.asarray([[0.3, -0.4]])
  huber = distances.pseudo_huber(0.00054 * math.sqrt(2))(pair, 0 * pair)
  yield row("pseudo_huber: golden", huber, [0.4992369079], 1e-6)
  for name, distance in (("l2", distances.l2()), ("pseudo_huber", distances.pseudo_huber(0.03))):
    slope = jax.grad(lambda a, d=distance: jnp.sum(d(a, b_)))(b_)
    yield row(f"{name}: its gradient at a = b is 0", slope, np.zeros_like(b), 1e-4)


def _tangent_inputs():
  x, dxdt, t, s = points()
  return (x, dxdt, t, s), on_device(x, dxdt, t, s)


def _wave_on_device(x, t):
  return wave(params_of()["net"], x, t, {}, None)


def _exact_tangent() -> Iterator[Row]:
  (x, dxdt, t, _), (x_, dxdt_, t_, _) = _tangent_inputs()
  for sd in (SD, OTHER_SD):
    F, g = tangent.tangent(_wave_on_device, x_, t_, dxdt_, sigma_data=sd)
    truth = along(np.cos(t), x) * df64(F64, x, t, dxdt, sd)
    yield row(f"g = cos(t) df/dt, sd {sd}", g, truth, 1e-4)
    yield row(f"F is the network's, sd {sd}", F, F64(x / sd, t))
  _, g = tangent.tangent(_wave_on_device, x_, t_, dxdt_, sigma_data=SD, warmup=0.0)
  matching = -(along(np.cos(t), x) ** 2) * (SD * F64(x / SD, t) - dxdt)
  yield row("warm-up at 0: velocity matching", g, matching)
  true = gaussian()
  F = lambda x, t: true.F_consistency({}, x, t, {}, None)
  dxdt_ = jnp.asarray(true.velocity(x, t), jnp.float32)
  _, g = tangent.tangent(F, x_, t_, dxdt_, sigma_data=SD)
  yield row("g = 0 for the true consistency model", g, np.zeros_like(x), 1e-4)


def _below(t):
  """A next lower time, of a kind that NumPy and JAX both know."""
  return 0.8 * t - 0.01


def _other_tangents() -> Iterator[Row]:
  (x, dxdt, t, _), (x_, dxdt_, t_, _) = _tangent_inputs()
  origin = t / 3
  origin_ = jnp.asarray(origin, jnp.float32)
  run = lambda estimator, **kwargs: estimator(
    _wave_on_device, x_, t_, dxdt_, sigma_data=OTHER_SD, **kwargs
  )[1]
  to_zero = along(np.cos(t), x) * df64(F64, x, t, dxdt, OTHER_SD)
  to_origin = along(np.cos(t - origin), x) * df64(F64, x, t, dxdt, OTHER_SD, origin)
  ours = run(tangent.exact(), origin=origin_)
  yield row("exact, to an origin: cos(t - t_k) df/dt", ours, to_origin, 1e-4)
  for name, estimator, tolerance in (
    ("central", tangent.central(1e-3), 1e-4),
    ("semi_continuous", tangent.semi_continuous(), 1e-3),
  ):
    yield row(f"{name}: g = cos(t) df/dt", run(estimator), to_zero, tolerance)
    yield row(f"{name}: to an origin", run(estimator, origin=origin_), to_origin, tolerance)
  lower, turn = _below(t), along(t - _below(t), x)
  x_lower = np.cos(turn) * x - np.sin(turn) * dxdt
  for name, o in (("0", 0 * t), ("an origin", origin)):
    change = f64(F64, x, t, OTHER_SD, o) - f64(F64, x_lower, lower, OTHER_SD, o)
    ours = run(tangent.discrete(_below), origin=jnp.asarray(o, jnp.float32))
    truth = along(np.cos(t - o), x) * change / np.sin(turn)
    yield row(f"discrete: (f - f') / sin(t - t'), to {name}", ours, truth, 1e-3)
  ours = run(tangent.discrete(_below), warmup=0.0)
  matching = -along(np.cos(t) * np.cos(lower), x) * (OTHER_SD * F64(x / OTHER_SD, t) - dxdt)
  yield row("discrete: warm-up at 0", ours, matching, 1e-4)


def _normalising() -> Iterator[Row]:
  g = points()[0]
  norm = np.sqrt(sums(g**2))
  g_ = jnp.asarray(g, jnp.float32)
  yield row("normalize: g / (||g|| + c)", tangent.normalize(g_, 0.1), g / along(norm + 0.1, g))
  rms = tangent.normalize(g_, 0.1, rms=True)
  yield row("normalize, rms: ||g|| / sqrt(D)", rms, g / along(norm / 2 + 0.1, g))


CHECKS = {
  "trigflow": (_process, _models, _levels, _heun_step),
  "times": (_proposals, _grids, _levels_and_curricula, _level_pairs, _discrete_grid),
  "weighting": (_weightings,),
  "ema": (_averages,),
  "edm": (_preconditioning, _edm_networks, _edm_consistency),
  "distances": (_distances,),
  "tangent": (_exact_tangent, _other_tangents, _normalising),
}
