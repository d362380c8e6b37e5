"""Continuous-time consistency models: sCT with the data's velocity, sCD with a teacher's."""

import jax
import jax.numpy as jnp

from cmjax import statistics, tangent, trigflow
from cmjax.times import SampleT
from cmjax.types import LossFn, Network, Params, VelocityFn
from cmjax.weighting import Weighting


def data_velocity() -> VelocityFn:
  """Follow the circle through each (x_0, z): consistency training."""
  return lambda x0, z, x_t, t, cond: trigflow.velocity(x0, z, t)


def teacher_velocity(teacher: Network, params: Params, *, sigma_data: float) -> VelocityFn:
  """Follow a frozen diffusion model's ODE, without dropout: consistency distillation.

  Args:
    teacher: the diffusion network.
    params: its weights (the paper takes their EMA).
    sigma_data: the std that the teacher was trained with.
  """
  return lambda x0, z, x_t, t, cond: (
    sigma_data * teacher.apply(params, x_t / sigma_data, t, cond, None)
  )


def loss(
  net: Network,
  velocity: VelocityFn,
  sample_t: SampleT,
  weighting: Weighting,
  *,
  sigma_data: float,
  c: float = 0.1,
  warmup_steps: int = 10_000,
  norm: str = "l2",
) -> LossFn:
  """Algorithm 1 of sCM (Lu & Song 2024, appendix A).

    E[e^w(t) / D || F - F_- - g / (||g|| + c) ||^2 - w(t)],  F_- = stop_gradient(F)

  F_- has the *current* weights, not an average, and shares the dropout mask with F: both are one
  call, the primal of the tangent's jvp. No further 1 / sigma: it is inside g.

  The loss itself carries no information, since the normalised tangent has nearly unit norm; watch
  tangent_norm (||g|| before normalising) and F_error (the mean square of F minus the velocity
  that it follows, in units of F: for sCT the diffusion loss), whole and per time bin, instead.

  Args:
    net: the student.
    velocity: `data_velocity` for sCT, `teacher_velocity` for sCD.
    sample_t: the proposal p(t).
    weighting: w_phi(t); its parameters are params["weighting"].
    sigma_data: std of the data.
    c: in the normalisation; 0.1 in all of the paper's experiments.
    warmup_steps: H, over which the part of g that can be unstable is faded in; 0 for none.
    norm: "l2" over each sample, or "rms" (cmjax default: l2; the paper leaves it open).
  """
  if norm not in ("l2", "rms"):
    raise ValueError(f"Unknown tangent norm {norm!r}. Choose from: l2, rms.")
  rms = norm == "rms"

  def loss_fn(params, batch, key, step):
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_z, key_net = jax.random.split(key, 3)
    t = sample_t(key_t, (len(x0),))
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)
    dxdt = jax.lax.stop_gradient(velocity(x0, z, x_t, t, cond))

    F, g = tangent.tangent(
      lambda x, t: net.apply(params["net"], x, t, cond, key_net),
      x_t,
      t,
      dxdt,
      sigma_data=sigma_data,
      warmup=jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0,
    )
    F_ = jax.lax.stop_gradient(F)
    residual = F - F_ - tangent.normalize(g, c, rms=rms)
    squared = jnp.mean(residual.reshape(len(x0), -1) ** 2, -1)
    w = weighting.apply(params["weighting"], t)
    value = jnp.mean(jnp.exp(w) * squared - w)

    F_error = jnp.mean((F_ - dxdt / sigma_data).reshape(len(x0), -1) ** 2, -1)
    metrics = {
      "loss": statistics.mean(value),
      "weight_min": statistics.mean(jnp.min(w)),
      "weight_max": statistics.mean(jnp.max(w)),
      **statistics.by_time("tangent_norm", tangent.norm(g, rms=rms), t),
      **statistics.by_time("F_error", F_error, t),
    }
    return value, metrics

  return loss_fn
