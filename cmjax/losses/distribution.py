"""Adaptive variational score distillation beside a consistency loss (sCM, appendix C)."""

import jax
import jax.numpy as jnp

from cmjax import trigflow
from cmjax.base.ranges import NonNegative, Scale
from cmjax.losses import continuous, diffusion, means
from cmjax.times import SampleT
from cmjax.types import LossFn, Network, VelocityFn
from cmjax.weighting import Weighting


def loss(
  consistency: LossFn,
  net: Network,
  velocity: VelocityFn,
  sample_t_vsd: SampleT,
  sample_t_fake: SampleT,
  weighting_vsd: Weighting,
  weighting_fake: Weighting,
  *,
  sigma_data: float,
  lambda_vsd: NonNegative = 1.0,
  guidance: tuple[Scale, Scale] | None = None,
) -> LossFn:
  """L_consistency + lambda_vsd L_VSD(theta, psi) + L_Diff(phi), in one backward pass.

  The consistency model is a generator of one step, x_0 = f(x, t_max) with x = sin(t_max) z' and
  t_max = arctan(80 / sigma_data); a second network F_phi (the fake one) learns diffusion on its
  samples. With x_t = cos(t) x_0 + sin(t) z and x_0 stopped in both,

    L_VSD  = E[e^w_psi(t) / D || x_0 - stop(x_0) + F_pre(x_t, t) - F_phi(x_t, t) ||^2 - w_psi(t)]
    L_Diff = the loss of `diffusion` for F_phi, with times and noise of its own.

  The gradient of L_VSD reaches theta (and psi), that of L_Diff phi, and nothing else. A step costs
  that of the consistency loss (5 forward passes for sCD) and 3 for the generator, whose one pass
  serves both losses, 1 each for teacher and F_phi in L_VSD, and 3 for L_Diff.

  cmjax defaults, where the paper is silent: F_phi has the architecture of the student and sees its
  label and guidance; in L_VSD it has no dropout, and w_phi in L_Diff is `weighting_fake`.

  Args:
    consistency: the consistency loss; it reads params["net"] and params["weighting"].
    net: the student, and F_phi with params["fake"].
    velocity: sigma_data F_pre, a frozen teacher's (`continuous.teacher_velocity`); one that applies
      guidance finds the scale in cond["guidance"].
    sample_t_vsd: times of L_VSD; in the paper log-normal with 0.4, 2.0.
    sample_t_fake: times of L_Diff; in the paper log-normal with -0.8, 1.6.
    weighting_vsd: w_psi; its parameters are params["vsd_weighting"].
    weighting_fake: that of L_Diff; its parameters are params["fake_weighting"].
    sigma_data: std of the data.
    lambda_vsd: 1 in the paper.
    guidance: (low, high) of cond["guidance"], as in `continuous.loss`.

  Metrics: those of the consistency loss, whose "loss" is then the total; consistency_loss; vsd_loss
  and vsd_gap (the mean square of F_pre - F_phi, also per time bin); vsd_weight_min and _max; those
  of `diffusion` for F_phi as fake_loss, fake_F_error, ...

  Raises:
    ValueError: for a guidance that is no pair.
  """
  continuous.check_guidance(guidance)
  fake_loss = diffusion.loss(net, sample_t_fake, weighting_fake, sigma_data=sigma_data)

  def generate(params, key, shape, cond):
    key_z, key_net = jax.random.split(key)
    t = jnp.broadcast_to(trigflow.sigma_to_t(80.0, sigma_data=sigma_data), shape[:1])
    z = trigflow.noise(key_z, shape, sigma_data=sigma_data)
    x_t = trigflow.cos_sin(t, z)[1] * z
    F = net.apply(params["net"], x_t / sigma_data, t, cond, key_net)
    return trigflow.denoise(x_t, sigma_data * F, t)

  def vsd_loss(params, x0, key, cond):
    fixed = jax.lax.stop_gradient(x0)
    key_t, key_z = jax.random.split(key)
    t = sample_t_vsd(key_t, (len(x0),))
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(fixed, z, t)
    F_fake = net.apply(params["fake"], x_t / sigma_data, t, cond, None)
    gap = jax.lax.stop_gradient(velocity(fixed, z, x_t, t, cond) / sigma_data - F_fake)
    w = weighting_vsd.apply(params["vsd_weighting"], t)
    squared = jnp.mean((x0 - fixed + gap).reshape(len(x0), -1) ** 2, -1)
    value = jnp.mean(jnp.exp(w) * squared - w)
    return value, {
      "vsd_loss": means.mean(value),
      "vsd_weight_min": means.mean(jnp.min(w)),
      "vsd_weight_max": means.mean(jnp.max(w)),
      **means.by_time("vsd_gap", squared, t),
    }

  def loss_fn(params, batch, key, step):
    key, key_s, key_x, key_vsd, key_fake = jax.random.split(key, 5)
    value, metrics = consistency(params, batch, key, step)
    shape, cond = batch["image"].shape, {k: v for k, v in batch.items() if k != "image"}
    cond = continuous.draw_guidance(key_s, cond, shape[0], guidance)
    x0 = generate(params, key_x, shape, cond)
    vsd, vsd_metrics = vsd_loss(params, x0, key_vsd, cond)
    fake_params = {"net": params["fake"], "weighting": params["fake_weighting"]}
    samples = cond | {"image": jax.lax.stop_gradient(x0)}
    fake, fake_metrics = fake_loss(fake_params, samples, key_fake, step)
    total = value + lambda_vsd * vsd + fake
    own = {"loss": means.mean(total), "consistency_loss": means.mean(value)}
    prefixed = {f"fake_{name}": mean for name, mean in fake_metrics.items()}
    return total, metrics | own | vsd_metrics | prefixed

  return loss_fn
