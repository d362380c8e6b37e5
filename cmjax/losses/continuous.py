"""Continuous-time consistency models: sCT with the data's velocity, sCD with a teacher's."""

import jax
import jax.numpy as jnp

from cmjax import tangent, times, trigflow
from cmjax.base.ranges import CountOrNone, Positive, Scale, Size
from cmjax.losses import means
from cmjax.times import SampleT
from cmjax.types import Array, Cond, LossFn, Metrics, Network, Params, Time, VelocityFn
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


def draw_guidance(key: Array, cond: Cond, n: int, guidance: tuple[float, float] | None) -> Cond:
  """cond with "guidance" ~ U[low, high] for each of n samples; as it is if guidance is None."""
  if guidance is None:
    return cond
  low, high = guidance
  return cond | {"guidance": jax.random.uniform(key, (n,), minval=low, maxval=high)}


def check_guidance(guidance: tuple[float, float] | None) -> None:
  """Refuses what is no pair (low, high) of guidance scales."""
  if guidance is not None and not (len(guidance) == 2 and guidance[0] <= guidance[1]):
    raise ValueError(
      f"guidance={guidance} must be a pair (low, high) of scales, such as (1.0, 2.0), or None."
    )


def segment_starts(t: Time, num_segments: int, *, sigma_data: float) -> Time:
  """t_k of the segment (t_k, t_k+1] of each t; what lies beyond t_max is in the last one.

  The boundaries are those of `times.segment_times`.
  """
  decreasing = times.segment_times(num_segments, sigma_data=sigma_data)
  boundaries = jnp.asarray(decreasing[:0:-1], t.dtype)
  # Compared, not divided: t_k < t then holds to the last bit, on which `tangent.discrete` relies.
  segment = jnp.sum(t[:, None] > boundaries[None, 1:], -1)
  return boundaries[segment]


def loss(
  net: Network,
  velocity: VelocityFn,
  sample_t: SampleT,
  weighting: Weighting,
  *,
  sigma_data: float,
  c: Positive = 0.1,
  warmup_steps: CountOrNone = 10_000,
  norm: str = "l2",
  estimator: tangent.Estimator = tangent.tangent,
  guidance: tuple[Scale, Scale] | None = None,
  num_segments: Size = 1,
  tangent_net: Network | None = None,
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
    estimator: how the tangent is found, a factory's of `cmjax.tangent`; the exact one by default.
    guidance: (low, high): student and velocity get cond["guidance"] ~ U[low, high], a scale that
      the student learns and the (guided) teacher applies. Not for sCT: data cannot be guided.
    num_segments: M of multistep sCD: f leads to the start t_k of one of M segments of time, and
      the student gets it as cond["segment"]; see `segment_starts`. 1 for a plain consistency model.
    tangent_net: the student at another precision, for the tangent alone: in bfloat16 the error of a
      jvp is far above that of F (arXiv 2510.08431, sec. 4.2 and F.2). F then is a call of its own,
      so a step costs one forward pass more. None: the primal of the jvp is F.

  Raises:
    ValueError: for an unknown norm, a guidance that is no pair, less than one segment.
  """
  if norm not in ("l2", "rms"):
    raise ValueError(f"Unknown tangent norm {norm!r}. Choose from: l2, rms.")
  if num_segments < 1:
    raise ValueError(f"num_segments={num_segments} must be at least 1: a plain consistency model.")
  check_guidance(guidance)
  rms = norm == "rms"

  def loss_fn(params, batch, key, step):
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_z, key_net = jax.random.split(key, 3)
    # What would be the fourth of the split: the other draws are the same with and without.
    cond = draw_guidance(jax.random.fold_in(key, 3), cond, len(x0), guidance)
    t = sample_t(key_t, (len(x0),))
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)
    dxdt = jax.lax.stop_gradient(velocity(x0, z, x_t, t, cond))
    origin = 0.0
    if num_segments > 1:
      origin = segment_starts(t, num_segments, sigma_data=sigma_data)
      cond = cond | {"segment": origin}

    # Without a gradient, nothing of a tangent's own pass is kept for one.
    weights = params["net"] if tangent_net is None else jax.lax.stop_gradient(params["net"])
    with jax.named_scope("tangent"):
      F, g = estimator(
        lambda x, t: (tangent_net or net).apply(weights, x, t, cond, key_net),
        x_t,
        t,
        dxdt,
        sigma_data=sigma_data,
        warmup=jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0,
        origin=origin,
      )
    if tangent_net is not None:
      F = net.apply(params["net"], x_t / sigma_data, t, cond, key_net)
    w = weighting.apply(params["weighting"], t)
    residual = F - jax.lax.stop_gradient(F) - tangent.normalize(g, c, rms=rms)
    squared = jnp.mean(residual.reshape(len(x0), -1) ** 2, -1)
    value = jnp.mean(jnp.exp(w) * squared - w)
    F_error = jnp.mean((F - dxdt / sigma_data).reshape(len(x0), -1) ** 2, -1)
    return value, _metrics(value, w, tangent.norm(g, rms=rms), F_error, t)

  return loss_fn


def _metrics(value: Array, w: Time, tangent_norm: Time, F_error: Time, t: Time) -> Metrics:
  return {
    "loss": means.mean(value),
    "weight_min": means.mean(jnp.min(w)),
    "weight_max": means.mean(jnp.max(w)),
    **means.by_time("tangent_norm", tangent_norm, t),
    **means.by_time("F_error", F_error, t),
  }
