"""Consistency models in discrete time: CT, CD, iCT and ECT are one loss with other arguments.

  loss_scale E[lambda d(f_theta(x_t, t), f_-(x_s, s))],  s < t neighbouring levels

              target_step   sample_pair            distance        weight        target
  CT          data_step     times.uniform_pairs    lpips, ...      uniform       average
  CD          teacher_step  times.uniform_pairs    lpips, ...      uniform       current, average
  iCT         data_step     times.lognormal_pairs  pseudo_huber    inverse_gap   current
  ECT         data_step     times.ect_pairs        l2              inverse_gap   current
  ECT, IN64   data_step     times.ect_pairs        pseudo_huber    karras at the larger level

CT, CD: arXiv 2303.01469; iCT: 2310.14189; ECT: 2406.14548. Levels and weights are in EDM's sigma,
the process and the network in TrigFlow; f is shifted by sigma_min as in CM (`edm.consistency`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax import edm, trigflow
from cmjax.base.ranges import Positive, SigmaOrZero
from cmjax.distances import Distance
from cmjax.losses import means
from cmjax.times import Curriculum, SamplePair
from cmjax.types import Array, Cond, LossFn, Network, VelocityFn

# x0, z, x_t, t, s, cond -> x_s, where the trajectory through x_t is at s < t.
TargetStep = Callable[[Array, Array, Array, Array, Array, Cond], Array]

# sigma, sigma_data -> lambda, of the level that `weight_level` names (CM's released code).
WEIGHTS = {
  "snr": lambda sigma, sigma_data: 1 / sigma**2,
  "snr_plus_one": lambda sigma, sigma_data: 1 / sigma**2 + 1,
  "truncated_snr": lambda sigma, sigma_data: jnp.maximum(1 / sigma**2, 1.0),
  "karras": lambda sigma, sigma_data: 1 / sigma**2 + 1 / sigma_data**2,
}


def data_step() -> TargetStep:
  """x_s = cos(s) x_0 + sin(s) z: consistency training.

  `trigflow.step` along the data's velocity is the same, but its rotation rounds; with this x_s is
  x_0 itself at s = 0.
  """
  return lambda x0, z, x_t, t, s, cond: trigflow.interpolate(x0, z, s)


def teacher_step(velocity: VelocityFn, solver: str = "heun") -> TargetStep:
  """x_s by one step of a teacher's ODE: consistency distillation.

  Args:
    velocity: the teacher's, `continuous.teacher_velocity`.
    solver: "heun" (EDM's, two evaluations; like EDM it takes an Euler step to s = 0) or "euler"
      (DDIM).
  """
  if solver not in ("heun", "euler"):
    raise ValueError(f"Unknown solver {solver!r}. Choose from: euler, heun.")

  def euler(x0, z, x_t, t, s, cond):
    return trigflow.step(x_t, velocity(x0, z, x_t, t, cond), t, s)

  def heun(x0, z, x_t, t, s, cond):
    v_t = velocity(x0, z, x_t, t, cond)  # with which both steps begin
    v = lambda x, u: v_t if x is x_t else velocity(x0, z, x, u, cond)
    # Where s = 0 the teacher is asked at t once more instead, and the answer not used.
    x_s = trigflow.heun_step(v, x_t, t, jnp.where(s > 0, s, t))
    return jnp.where(trigflow.per_sample(s > 0, x_t), x_s, trigflow.step(x_t, v_t, t, s))

  return heun if solver == "heun" else euler


def _weight_fn(weight: str, level: str, sigma_data: float) -> Callable[[Array, Array], Array]:
  """sigma, sigma_next -> lambda."""
  if weight == "uniform":
    return lambda sigma, sigma_next: jnp.ones_like(sigma)
  if weight == "inverse_gap":
    return lambda sigma, sigma_next: 1 / (sigma - sigma_next)
  if weight not in WEIGHTS:
    choices = ", ".join(["uniform", "inverse_gap", *WEIGHTS])
    raise ValueError(f"Unknown weight {weight!r}. Choose from: {choices}.")
  if level not in ("smaller", "larger"):
    raise ValueError(f"Unknown weight_level {level!r}. Choose from: smaller, larger.")
  of = WEIGHTS[weight]
  return lambda sigma, sigma_next: of(sigma if level == "larger" else sigma_next, sigma_data)


def loss(
  net: Network,
  target_step: TargetStep,
  sample_pair: SamplePair,
  distance: Distance,
  *,
  sigma_data: float,
  sigma_min: SigmaOrZero = 0.0,
  weight: str = "uniform",
  weight_level: str = "smaller",
  target: str = "current",
  loss_scale: Positive = 1.0,
  curriculum: Curriculum | None = None,
) -> LossFn:
  """The consistency loss between neighbouring levels (table above).

  Student and target share the noise and one dropout key; nothing of the target has a gradient. At
  s = 0, which only ECT has, the target is x_s itself and no network (for data: x_0).

  Metrics: loss; weight (the mean of lambda, with which the loss jumps when N doubles); distance,
  without weight and also per time bin; sigma_gap and sigma_ratio, the means of sigma - sigma_next
  and sigma_next / sigma; num_levels, if `curriculum` is given.

  Args:
    net: the student.
    target_step: from x_t to x_s.
    sample_pair: the levels.
    distance: d(a, b), in units of the data.
    sigma_data: std of the data.
    sigma_min: where f is the identity: 0.002 for CM and iCT, 0 for ECT.
    weight: lambda: "uniform" 1; "inverse_gap" 1 / (sigma - sigma_next); "snr" 1 / sigma^2;
      "snr_plus_one"; "truncated_snr" max(snr, 1); "karras" snr + 1 / sigma_data^2.
    weight_level: the sigma of the last four: the "smaller" level as in CM (where it must not be
      0), or the "larger" one as in ECT on ImageNet.
    target: the target's weights: "current" for the student's own of this step, "average" for
      params["target"].
    loss_scale: a factor.
    curriculum: that of `sample_pair`, to report N; it changes nothing else.
  """
  if target not in ("current", "average"):
    raise ValueError(f"Unknown target {target!r}. Choose from: average, current.")
  weight_fn = _weight_fn(weight, weight_level, sigma_data)

  def loss_fn(params, batch, key, step):
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_z, key_net = jax.random.split(key, 3)
    sigma, sigma_next = sample_pair(key_t, (len(x0),), step)
    t = trigflow.sigma_to_t(sigma, sigma_data=sigma_data)
    s = trigflow.sigma_to_t(sigma_next, sigma_data=sigma_data)
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)
    x_s = target_step(x0, z, x_t, t, s, cond)

    def f(weights, x, t):
      F = net.apply(weights, x / sigma_data, t, cond, key_net)
      return edm.consistency(F, x, t, sigma_data=sigma_data, sigma_min=sigma_min)

    positive = trigflow.per_sample(s > 0, x0)
    # A network that knows ln(sigma) is not asked at 0, though its answer would not be used.
    f_s = f(params["target" if target == "average" else "net"], x_s, jnp.where(s > 0, s, t))
    f_s = jax.lax.stop_gradient(jnp.where(positive, f_s, x_s))
    d = distance(f(params["net"], x_t, t), f_s)
    w = weight_fn(sigma, sigma_next)
    value = loss_scale * jnp.mean(w * d)
    metrics = {
      "loss": means.mean(value),
      "weight": means.mean(w),
      **means.by_time("distance", d, t),
      "sigma_gap": means.mean(sigma - sigma_next),
      "sigma_ratio": means.mean(sigma_next / sigma),
    }
    if curriculum is not None:
      metrics["num_levels"] = means.mean(curriculum(step).astype(jnp.float32))
    return value, metrics

  return loss_fn
