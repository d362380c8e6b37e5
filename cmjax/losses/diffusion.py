"""Diffusion teachers: v-prediction on TrigFlow."""

import jax
import jax.numpy as jnp

from cmjax import trigflow
from cmjax.base.ranges import Share
from cmjax.losses import means
from cmjax.times import SampleT
from cmjax.types import LossFn, Network
from cmjax.weighting import Weighting


def loss(
  net: Network,
  sample_t: SampleT,
  weighting: Weighting,
  *,
  sigma_data: float,
  label_dropout: Share = 0.0,
) -> LossFn:
  """E[e^w(t) / D || F - v_t / sigma_data ||^2 - w(t)], v_t = cos(t) z - sin(t) x_0 (sCM, eq. 4).

  With `weighting.learned` this is the loss of sCM's teachers (appendix D; there w is EDM2's minus
  logvar); with `weighting.constant`, plain eq. 4 over sigma_data^2. EDM's weighting is the same
  loss: lambda(sigma) c_out^2 = 1.

  A share `label_dropout` of the labels is replaced by -1, "no class": one network is then both the
  conditional and the unconditional model that `guidance.classifier_free` needs (sCM, table 5: 0.1).

  Metrics: loss, F_error (the mean square before weighting, also per time bin), weight_min and
  weight_max of w(t).
  """
  if not 0 <= label_dropout < 1:
    raise ValueError(f"label_dropout={label_dropout} is a share of the labels: it is in [0, 1).")

  def loss_fn(params, batch, key, step):
    del step
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_z, key_net = jax.random.split(key, 3)
    if label_dropout:
      if "label" not in cond:
        raise ValueError(f"label_dropout={label_dropout} needs labels: set net.num_classes.")
      drop = jax.random.bernoulli(jax.random.fold_in(key, 3), label_dropout, (len(x0),))
      cond["label"] = jnp.where(drop, -1, cond["label"])
    t = sample_t(key_t, (len(x0),))
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)
    F = net.apply(params["net"], x_t / sigma_data, t, cond, key_net)
    residual = F - trigflow.velocity(x0, z, t) / sigma_data
    squared = jnp.mean(residual.reshape(len(x0), -1) ** 2, -1)
    w = weighting.apply(params["weighting"], t)
    value = jnp.mean(jnp.exp(w) * squared - w)
    metrics = {
      "loss": means.mean(value),
      "weight_min": means.mean(jnp.min(w)),
      "weight_max": means.mean(jnp.max(w)),
      **means.by_time("F_error", squared, t),
    }
    return value, metrics

  return loss_fn
