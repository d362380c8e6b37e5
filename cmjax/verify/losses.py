"""Rows of the losses: values and gradients by definition, what is stopped, what is learnt.

Run without jit, a loss shows what it gives to the functions it is made of: x_0, z, x_t and t are
taken from there, and all else is recomputed in float64.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import distances, oracle, tangent, trigflow, weighting
from cmjax.losses import continuous, continuous_2023, diffusion, discrete, distribution
from cmjax.types import Network
from cmjax.verify.table import Row, row
from cmjax.verify.truths import (
  F64,
  OTHER_SD,
  SD,
  SHAPE,
  WAVE,
  along,
  batch_of,
  df64,
  edm_heun,
  f64,
  f_shifted,
  fixed_times,
  mixture,
  net_of,
  on_device,
  params_of,
  plain,
  points,
  sums,
  value_alone,
  value_and_slope,
  wave,
)


def _spy(velocity, seen: dict):
  """A VelocityFn that keeps what it was given and what it gave, in float64."""

  def spying(x0, z, x_t, t, cond):
    dxdt = velocity(x0, z, x_t, t, cond)
    arrays = dict(x0=x0, z=z, x_t=x_t, t=t, dxdt=dxdt, **cond)
    seen.update({name: np.asarray(a, np.float64) for name, a in arrays.items()})
    return dxdt

  return spying


def _diffusion() -> Iterator[Row]:
  seen: dict[str, Any] = {}

  def spying(params, x, t, cond, key):
    seen.update(x=np.asarray(x, np.float64), t=np.asarray(t, np.float64))
    return wave(params, x, t, cond, None)

  weight = weighting.inverse_sigma(sigma_data=SD)
  loss_fn = diffusion.loss(net_of(spying), fixed_times, weight, sigma_data=SD)
  batch = batch_of()
  value, metrics = loss_fn(params_of(), batch, jax.random.key(3), jnp.asarray(0))
  x0, x, t = np.asarray(batch["image"], np.float64), seen["x"], seen["t"]
  z = (SD * x - along(np.cos(t), x) * x0) / along(np.sin(t), x)
  residual = F64(x, t) - (along(np.cos(t), x) * z - along(np.sin(t), x) * x0) / SD
  squared, w = sums(residual**2) / 4, -np.log(SD * np.tan(t))
  yield row(
    "diffusion: e^w / D ||F - v / sd||^2 - w", value, np.mean(np.exp(w) * squared - w), 1e-4
  )
  F_error = metrics["F_error"]
  yield row("diffusion: F_error before weighting", F_error.total / 6, np.mean(squared), 1e-4)


def _diffusion_minimum() -> Iterator[Row]:
  s, t = 0.2, 1.0
  true = oracle.gaussian(np.zeros(SHAPE), s, sigma_data=SD)
  slope = true.velocity(np.ones((1, *SHAPE)), np.array([t])).flat[0]  # F and v are linear
  net = Network(lambda key: {}, lambda params, x, t, cond, key: params["a"] * x)
  sample_t = lambda key, shape: jnp.full(shape, t)
  loss_fn = diffusion.loss(net, sample_t, weighting.constant(), sigma_data=SD)
  batch = {"image": true.sample(jax.random.key(1), 8192)}
  at = lambda a: value_and_slope(loss_fn, params_of(net={"a": jnp.float32(a)}), batch)[1]
  minimum = at(0.0) / (at(0.0) - at(1.0))
  yield row("diffusion: its minimum is the true F", minimum, slope, 0.02)


def _continuous_truth(seen, *, c=0.1, warmup=1.0, rms=False, bias=0.0, cond=None, origin=0.0):
  """The loss and its derivative by the parameter, from the definition, of what the spy saw."""
  x, t, dxdt = seen["x_t"], seen["t"], seen["dxdt"]
  F = lambda x, t: F64(x, t, cond)
  cos = along(np.cos(t - origin), x)
  full = cos * df64(F, x, t, dxdt, SD, origin)
  matching = -(cos**2) * (SD * F(x / SD, t) - dxdt)
  g = matching + warmup * (full - matching)
  n = g / along(np.sqrt(sums(g**2) / (4 if rms else 1)) + c, g)
  dF_da = np.sin(3 * x / SD) * along(np.cos(t), x)
  value = np.mean(np.exp(bias) * sums(n**2) / 4 - bias)
  return value, np.mean(np.exp(bias) * sums(-2 * n * dF_da) / 4)


def _continuous() -> Iterator[Row]:
  teacher = lambda x0, z, x_t, t, cond: mixture().velocity(x_t, t)
  cases = {
    "sCT": (continuous.data_velocity(), dict(), dict()),
    "sCD": (teacher, dict(c=0.3), dict(c=0.3)),
    "sCD, rms norm": (teacher, dict(norm="rms"), dict(rms=True)),
    "sCT at r = 1/2": (continuous.data_velocity(), dict(warmup_steps=20), dict(warmup=0.5)),
  }
  for name, (velocity, kwargs, truth_kwargs) in cases.items():
    seen: dict[str, Any] = {}
    kwargs = dict(warmup_steps=0) | kwargs
    weight = weighting.learned(bias=0.7)
    loss_fn = continuous.loss(
      net_of(), _spy(velocity, seen), fixed_times, weight, sigma_data=SD, **kwargs
    )
    params = params_of(weighting=weight.init(jax.random.key(0)))
    value, slope, _ = value_and_slope(loss_fn, params, batch_of(), 10.0)
    truth = _continuous_truth(seen, bias=0.7, **truth_kwargs)
    yield row(f"{name}: the loss of Algorithm 1", value, truth[0], 1e-4)
    yield row(f"{name}: its gradient", slope, truth[1], 1e-4)


def _multistep_and_guided() -> Iterator[Row]:
  starts = continuous.segment_starts(jnp.asarray([0.3, 0.7, 1.5, 1.57]), 3, sigma_data=SD)
  yield row("segment_starts: uniform in t", starts, np.arctan(160) / 3 * np.array([0, 1, 2, 2]))
  cases: dict[str, dict[str, Any]] = {
    "multistep": dict(num_segments=3),
    "guided": dict(guidance=(1.0, 2.0)),
  }
  for name, kwargs in cases.items():
    seen: dict[str, Any] = {}
    loss_fn = continuous.loss(
      net_of(),
      _spy(lambda x0, z, x_t, t, cond: mixture().velocity(x_t, t), seen),
      fixed_times,
      weighting.constant(),
      sigma_data=SD,
      warmup_steps=0,
      **kwargs,
    )
    value, slope, _ = value_and_slope(loss_fn, params_of(), batch_of())
    if name == "multistep":
      origin = np.floor(seen["t"] / (np.arctan(160) / 3)) * np.arctan(160) / 3
      truth = _continuous_truth(seen, origin=origin, cond={"segment": origin})
    else:
      truth = _continuous_truth(seen, cond={"guidance": seen["guidance"]})
    yield row(f"sCD, {name}: its loss", value, truth[0], 1e-4)
    yield row(f"sCD, {name}: its gradient", slope, truth[1], 1e-4)
  scales = continuous.draw_guidance(jax.random.key(0), {}, 4096, (1.0, 2.0))["guidance"]
  quantiles = np.quantile(np.asarray(scales), [0.0, 0.5, 1.0])
  yield row("guidance is uniform in [1, 2]", quantiles, [1.0, 1.5, 2.0], 0.02)


def _continuous_parts() -> Iterator[Row]:
  x, z, t, _ = points()
  x_, z_, t_ = on_device(x, z, t)
  teacher = continuous.teacher_velocity(net_of(), params_of()["net"], sigma_data=OTHER_SD)
  v = OTHER_SD * F64(x / OTHER_SD, t)
  yield row(
    "teacher_velocity: sigma_data F(x_t / sigma_data)", teacher(x_, z_, x_, t_, {}), v, 1e-4
  )
  keys = _keys(lambda net: continuous.loss(
    net, continuous.data_velocity(), fixed_times, weighting.constant(), sigma_data=SD,
    estimator=tangent.semi_continuous(),
  ))  # fmt: skip
  yield row("sCM: one dropout key for value and tangent", keys, 1)
  seen: dict[str, Any] = {}
  loss_fn = continuous.loss(
    net_of(),
    _spy(continuous.data_velocity(), seen),
    fixed_times,
    weighting.constant(),
    sigma_data=SD,
    warmup_steps=0,
    estimator=tangent.discrete(lambda t: 0.9 * t),
  )
  value, _, _ = value_alone(loss_fn, params_of(), batch_of())
  x, t, turn = seen["x_t"], seen["t"], along(0.1 * seen["t"], seen["x_t"])
  x_lower = np.cos(turn) * x - np.sin(turn) * seen["dxdt"]
  g = along(np.cos(t), x) * (f64(F64, x, t, SD) - f64(F64, x_lower, 0.9 * t, SD)) / np.sin(turn)
  n = g / along(np.sqrt(sums(g**2)) + 0.1, g)
  yield row("discrete sCM: its loss", value, np.mean(sums(n**2) / 4), 1e-4)


def _keys(make_loss) -> int:
  """How many dropout keys a loss gives to its network; a call without any counts for ten."""
  keys = []

  def spying(params, x, t, cond, key):
    keys.append(key)
    return plain(params, x, t, cond, None)

  make_loss(net_of(spying))(params_of(), batch_of(), jax.random.key(3), jnp.asarray(0))
  bits = {None if key is None else tuple(jax.random.key_data(key).tolist()) for key in keys}
  return len(bits - {None}) + 10 * (None in bits)


def _continuous_2023() -> Iterator[Row]:
  huber = lambda a, b: jnp.sqrt(jnp.sum((a - b).reshape(len(a), -1) ** 2, -1) + 0.25) - 0.5
  cases = {  # value of each sample, of f, v = df/dsigma and dsigma/du
    "theorem 3": (dict(stop_gradient=False), lambda f, v, speed: speed * sums(v**2)),
    "theorem 3 as a norm": (
      dict(stop_gradient=False, norm_form=True),
      lambda f, v, speed: np.sqrt(sums(v**2)),
    ),
    "theorem 4": (
      dict(stop_gradient=False, distance="l1"),
      lambda f, v, speed: sums(np.abs(v)),
    ),
    "theorem 5": (dict(), lambda f, v, speed: 2 * sums(f * v)),
    "theorem 5, a Hessian of 2": (dict(distance=huber), lambda f, v, speed: 2 * sums(f * v)),
    "theorem 6": (dict(), lambda f, v, speed: 2 * sums(f * v)),
  }
  low, high = 0.05 ** (1 / 7), 80 ** (1 / 7)
  for name, (kwargs, truth) in cases.items():
    seen: dict[str, Any] = {}
    teacher = lambda x0, z, x_t, t, cond: mixture().velocity(x_t, t)
    velocity = continuous.data_velocity() if name == "theorem 6" else teacher
    loss_fn = continuous_2023.loss(
      net_of(), _spy(velocity, seen), sigma_data=SD, sigma_min=0.05, **kwargs
    )
    value, slope, _ = value_and_slope(loss_fn, params_of(), batch_of())
    sigma = SD * np.tan(seen["t"])
    c, s = (along(f(seen["t"]), seen["x_t"]) for f in (np.cos, np.sin))
    dx, x = (s * seen["x_t"] + c * seen["dxdt"]) / SD, seen["x_t"] / c

    def f_of(a, x, sigma):
      t = np.arctan(sigma / SD)
      x_t = along(np.cos(t), x) * x
      return f_shifted(wave({"a": a}, x_t / SD, t, {}, None), x_t, t, 0.05)

    def f_and_v(a, x=x, dx=dx, sigma=sigma, f_of=f_of):
      h = 1e-5 * sigma
      change = f_of(a, x + along(h, x) * dx, sigma + h) - f_of(a, x - along(h, x) * dx, sigma - h)
      return f_of(a, x, sigma), change / along(2 * h, x)

    speed = 7 * sigma ** (6 / 7) * (high - low)
    f, v = f_and_v(WAVE["a"])
    yield row(f"CM {name}: its value", value, np.mean(truth(f, v, speed)), 1e-3)
    above, below = f_and_v(WAVE["a"] + 1e-4), f_and_v(WAVE["a"] - 1e-4)
    stopped = (v, v) if "5" in name or "6" in name else (above[1], below[1])
    change = truth(above[0], stopped[0], speed) - truth(below[0], stopped[1], speed)
    yield row(f"CM {name}: its gradient", slope, np.mean(change) / 2e-4, 1e-3)


def _distribution() -> Iterator[Row]:
  """Networks that are constants: b for the generator, -1/4 for the fake one."""
  b, b_fake, t_fake, n = -1.0, -0.25, 1.0, 2048
  seen: dict[str, Any] = {}
  net = Network(lambda key: {}, lambda params, x, t, cond, key: 0 * x + params["a"])
  weight = weighting.learned(bias=0.3)
  loss_fn = distribution.loss(
    lambda params, batch, key, step: (0.7 * params["net"]["a"], {}),
    net,
    _spy(lambda x0, z, x_t, t, cond: mixture().velocity(x_t, t), seen),
    fixed_times,
    lambda key, shape: jnp.full(shape, t_fake),
    weight,
    weighting.constant(),
    sigma_data=SD,
    lambda_vsd=3.0,
  )
  params = params_of(
    net={"a": jnp.float32(b)},
    fake={"a": jnp.float32(b_fake)},
    vsd_weighting=weight.init(jax.random.key(0)),
    fake_weighting={},
  )
  (value, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    params, batch_of(n), jax.random.key(3), jnp.asarray(0)
  )
  gap = seen["dxdt"] / SD - b_fake
  vsd = np.mean(np.exp(0.3) * sums(gap**2) / 4 - 0.3)
  mean = lambda name: metrics[name].total / metrics[name].count
  yield row("VSD: e^w / D ||F_pre - F_fake||^2 - w", mean("vsd_loss"), vsd, 1e-4)
  total = 0.7 * b + 3 * vsd + np.float64(mean("fake_loss"))
  yield row("VSD: the sum of the losses", value, total, 1e-4)
  dx0 = -np.sin(np.arctan(160)) * SD
  slope = 0.7 + 3 * np.mean(np.exp(0.3) * sums(2 * gap * dx0) / 4)
  yield row("VSD: the generator's gradient", grads["net"]["a"], slope, 1e-3)
  slope = 3 * np.mean(np.exp(0.3) * sums(gap**2) / 4 - 1)
  yield row("VSD: the weighting's gradient", grads["vsd_weighting"]["bias"], slope, 1e-3)
  x0 = np.cos(np.arctan(160)) * 0 - np.sin(np.arctan(160)) * SD * b
  yield row("VSD: samples are f(x, t_max)", np.mean(seen["x0"]), x0, 1e-3)
  spread = np.cos(np.arctan(160)) * SD
  yield row(
    "VSD: samples start at noise of std sigma_data", np.std(seen["x0"]), spread, 0.05, unit=0.0
  )
  minimum = b_fake - np.float64(grads["fake"]["a"]) / 2
  velocity = -np.sin(t_fake) * np.mean(seen["x0"]) / SD
  yield row("VSD: the fake network learns the samples' velocity", minimum, velocity, 0.05)


WEIGHTS = {  # of the smaller level
  "uniform": lambda sigma, lower: np.ones_like(sigma),
  "inverse_gap": lambda sigma, lower: 1 / (sigma - lower),
  "snr": lambda sigma, lower: lower**-2,
  "snr_plus_one": lambda sigma, lower: lower**-2 + 1,
  "truncated_snr": lambda sigma, lower: np.maximum(lower**-2, 1),
  "karras": lambda sigma, lower: lower**-2 + SD**-2,
}


def _fixed_pairs(key, shape, step):
  sigma = jnp.geomspace(0.2, 20.0, shape[0])
  return sigma, sigma * jnp.linspace(0.5, 0.9, shape[0])


def _discrete_case(distance, params=None, pairs=_fixed_pairs, *, gradient=False, **kwargs):
  """What a discrete loss is and what its target step was given, in float64; its gradient if asked.

  Without jit a gradient takes several times as long as the loss alone.
  """
  seen: dict[str, Any] = {}

  def spying(x0, z, x_t, t, s, cond):
    x_s = discrete.data_step()(x0, z, x_t, t, s, cond)
    found = dict(x0=x0, z=z, x_t=x_t, t=t, s=s, x_s=x_s)
    seen.update({name: np.asarray(a, np.float64) for name, a in found.items()})
    return x_s

  loss_fn = discrete.loss(net_of(), spying, pairs, distance, sigma_data=SD, **kwargs)
  evaluate = value_and_slope if gradient else value_alone
  value, slope, _ = evaluate(loss_fn, params or params_of(), batch_of())
  return value, slope, seen


def _discrete_truth(seen, distance, weight, sigma_min=0.0, target: Any = WAVE["a"]):
  """The loss from its definition, and its derivative by the student's parameter alone."""
  x_t, t, x_s, s = (seen[name] for name in ("x_t", "t", "x_s", "s"))
  f = lambda a, x, t: f_shifted(wave({"a": a}, x / SD, t, {}, None), x, t, sigma_min)
  at = lambda a: np.mean(
    weight(SD * np.tan(t), SD * np.tan(s)) * distance(f(a, x_t, t), f(target, x_s, s))
  )
  a, h = WAVE["a"], 1e-5
  return at(a), (at(a + h) - at(a - h)) / (2 * h)


def _discrete() -> Iterator[Row]:
  squared = lambda a, b: sums((a - b) ** 2)
  for weight, truth in WEIGHTS.items():
    value, slope, seen = _discrete_case(
      distances.squared_l2(), weight=weight, sigma_min=0.002, gradient=weight == "inverse_gap"
    )
    value_, slope_ = _discrete_truth(seen, squared, truth, 0.002)
    yield row(f"CT, weight {weight}", value, value_, 2e-4, unit=0.0)
    if weight == "inverse_gap":
      yield row("CT: no gradient through the target", slope, slope_, 1e-3, unit=0.0)
  yield row("the pair shares its noise: x_s", seen["x_s"], _interpolated(seen, "s"), 1e-4)
  yield row("the pair shares its noise: x_t", seen["x_t"], _interpolated(seen, "t"), 1e-4)
  value, _, seen = _discrete_case(distances.l1(), weight="karras", weight_level="larger")
  of_larger = lambda sigma, lower: sigma**-2 + SD**-2
  value_, _ = _discrete_truth(seen, lambda a, b: sums(np.abs(a - b)), of_larger)
  yield row("ECT, ImageNet: weight karras of the larger level", value, value_, 2e-4, unit=0.0)
  huber = lambda a, b: np.sqrt(squared(a, b) + 0.03**2) - 0.03
  value, slope, seen = _discrete_case(
    distances.pseudo_huber(0.03), weight="inverse_gap", gradient=True
  )
  value_, slope_ = _discrete_truth(seen, huber, WEIGHTS["inverse_gap"])
  yield row("iCT: pseudo-Huber over the gap", value, value_, 2e-4, unit=0.0)
  yield row("iCT: its gradient", slope, slope_, 1e-3, unit=0.0)
  doubled, _, _ = _discrete_case(distances.pseudo_huber(0.03), weight="inverse_gap", loss_scale=2.0)
  yield row("loss_scale", doubled, 2 * value_, 2e-4, unit=0.0)


def _interpolated(seen, name):
  t = along(seen[name], seen["x0"])
  return np.cos(t) * seen["x0"] + np.sin(t) * seen["z"]


def _discrete_targets() -> Iterator[Row]:
  squared = lambda a, b: sums((a - b) ** 2)
  params = params_of(target={"a": jnp.float32(0.3)})
  value, slope, seen = _discrete_case(
    distances.squared_l2(), params, target="average", gradient=True
  )
  value_, slope_ = _discrete_truth(seen, squared, WEIGHTS["uniform"], target=0.3)
  yield row("target average: params['target']", value, value_, 2e-4, unit=0.0)
  yield row("target average: its gradient", slope, slope_, 1e-3, unit=0.0)
  value, _, _ = _discrete_case(distances.squared_l2(), params, target="current")
  value_, _ = _discrete_truth(seen, squared, WEIGHTS["uniform"])
  yield row("target current: the student itself", value, value_, 2e-4, unit=0.0)
  to_zero = lambda key, shape, step: (jnp.full(shape, 0.5), jnp.zeros(shape))
  value, _, seen = _discrete_case(distances.l2(), pairs=to_zero, weight="inverse_gap")
  f = f_shifted(F64(seen["x_t"] / SD, seen["t"]), seen["x_t"], seen["t"], 0.0)
  truth = np.mean(np.sqrt(sums((f - seen["x0"]) ** 2)) / 0.5)
  yield row("ECT: where r = 0 the target is the data", value, truth, 2e-4, unit=0.0)


def _shared_dropout() -> Iterator[Row]:
  keys = _keys(lambda net: discrete.loss(
    net, discrete.data_step(), _fixed_pairs, distances.l2(), sigma_data=SD
  ))  # fmt: skip
  yield row("one dropout key for student and target", keys, 1)


def _target_steps() -> Iterator[Row]:
  x, z, t, s = points()
  x_, z_, t_, s_ = on_device(x, z, t, s)
  v = mixture().velocity
  velocity = lambda x0, z, x_t, t, cond: v(x_t, t)
  ours = discrete.data_step()(x_, z_, x_, t_, s_, {})
  there = np.cos(along(s, x)) * x + np.sin(along(s, x)) * z
  yield row("data_step: the same noise at s", ours, there)
  ours = discrete.teacher_step(velocity, "euler")(x_, z_, x_, t_, s_, {})
  turn = along(t - s, x)
  yield row("teacher_step euler: DDIM", ours, np.cos(turn) * x - np.sin(turn) * v(x, t), 1e-4)
  ours = discrete.teacher_step(velocity, "heun")(x_, z_, x_, t_, s_, {})
  pairs = [np.array(pair) for pair in zip(t, s, strict=True)]
  steps = [edm_heun(v, x[i : i + 1], pair, SD, to_zero=False) for i, pair in enumerate(pairs)]
  yield row("teacher_step heun: EDM's Heun", ours, np.concatenate(steps), 1e-4)


def _what_consistency_training_learns() -> Iterator[Row]:
  """iCT's toy model: data at one point xi, f = (m / sigma) x + (1 - m / sigma) theta."""
  xi, theta, m, sigma = 0.9, 0.2, 0.1, 1.0
  gap = lambda key, shape, step: (jnp.full(shape, sigma), jnp.full(shape, sigma - 2e-3))

  def F(params, x, t, cond, key):
    c, s = trigflow.cos_sin(t, x)
    f = m * c / (SD * s) * (SD * x / c) + (1 - m * c / (SD * s)) * params["a"]
    return (c * SD * x - f) / (SD * s)

  loss_fn = discrete.loss(
    net_of(F),
    discrete.data_step(),
    gap,
    distances.squared_l2(),
    sigma_data=SD,
    weight="inverse_gap",
  )
  params = params_of(net={"a": jnp.float32(theta)})
  _, slope, _ = value_and_slope(loss_fn, params, {"image": jnp.full((6, *SHAPE), xi)})
  limit = 2 * m / sigma**2 * (1 - m / sigma) * (theta - xi) * 4
  yield row("CT learns the data: iCT's toy gradient", slope, limit, 0.02, unit=0.0)


CHECKS = {
  "diffusion": (_diffusion, _diffusion_minimum),
  "continuous": (_continuous, _multistep_and_guided, _continuous_parts),
  "continuous_2023": (_continuous_2023,),
  "distribution": (_distribution,),
  "discrete": (
    _discrete,
    _discrete_targets,
    _shared_dropout,
    _target_steps,
    _what_consistency_training_learns,
  ),
}
