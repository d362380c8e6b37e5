"""Guidance: a `NetFn` made of one or two others, to sample from or to distil.

At a given (x_t, t) the denoiser D = cos(t) x_t - sin(t) sigma_data F is affine in F, and so are
velocity, noise and score. The weights w and 1 - w of guidance sum to 1, hence guiding F *is*
guiding D: F = F_guide + w (F_net - F_guide). w = 1 is the network itself, w > 1 is guided.
"""

import math

import jax
import jax.numpy as jnp

from cmjax import trigflow
from cmjax.types import Array, Cond, NetFn, Params

NO_CLASS = -1  # cond["label"] for which a network drops its class


def classifier_free(net: NetFn, scale: float | None = None) -> NetFn:
  """Classifier-free guidance (Ho & Salimans 2022): away from the same network without a class.

  cond["label"] must be there; the unconditional network gets label -1. Two evaluations, one after
  the other, with the same dropout: half the memory of one on twice the batch, and no
  concatenation across devices.

  Args:
    net: a network trained with and without labels.
    scale: w; 1 costs one evaluation. None: cond["guidance"], one w per sample, which `net` does
      not get to see.
  """
  _check_scale(scale)

  def guided(params, x, t, cond, key):
    if "label" not in cond:
      raise ValueError(
        f'Classifier-free guidance needs cond["label"], got {sorted(cond) or "an empty cond"}: '
        "give labels, or do not guide an unconditional network."
      )
    w, cond = _split_scale(scale, cond, x)
    F = net(params, x, t, cond, key)
    if scale == 1:
      return F
    no_class = {**cond, "label": jnp.full_like(cond["label"], NO_CLASS)}
    return _extrapolate(F, net(params, x, t, no_class, key), w)

  return guided


def autoguidance(
  net: NetFn, guide: NetFn, guide_params: Params, scale: float | None = None
) -> NetFn:
  """Guidance away from a worse network (Karras et al. 2024); the guide has no dropout.

  A guide that ignores the labels gives EDM2's classifier-free guidance, a smaller and less trained
  one that sees them gives autoguidance proper.

  Args:
    net: the network to sample from.
    guide: the worse one; it gets the same cond.
    guide_params: its weights.
    scale: as in `classifier_free`.
  """
  _check_scale(scale)

  def guided(params, x, t, cond, key):
    w, cond = _split_scale(scale, cond, x)
    F = net(params, x, t, cond, key)
    if scale == 1:
      return F
    return _extrapolate(F, guide(guide_params, x, t, cond, None), w)

  return guided


def interval(guided: NetFn, plain: NetFn, t_low: float, t_high: float) -> NetFn:
  """Guidance for t_low <= t <= t_high only (Kynkaanniemi et al. 2024).

  Per sample. When no t of the batch is inside, as in a sampler's steps out of the interval, only
  `plain` is evaluated: with 3 of 18 DDIM steps inside, a small U-Net on a CPU took 1.4 times as
  long as without guidance, and 3.3 times with a `jnp.where` alone. Under `vmap` it is the latter.

  Args:
    guided: used inside.
    plain: used outside; with a scale in cond["guidance"], one that ignores it.
    t_low: an angle, not a sigma.
    t_high: an angle; pi/2 for no upper end.
  """
  if not 0 <= t_low < t_high <= math.pi / 2 + 1e-6:
    raise ValueError(f"Need angles 0 <= t_low < t_high <= pi/2, got {t_low} and {t_high}: for EDM "
                     "noise levels use trigflow.sigma_to_t.")  # fmt: skip

  def switched(params, x, t, cond, key):
    inside = (t_low <= t) & (t <= t_high)

    def some_inside():
      F = guided(params, x, t, cond, key)
      return jnp.where(trigflow.per_sample(inside, F), F, plain(params, x, t, cond, key))

    return jax.lax.cond(jnp.any(inside), some_inside, lambda: plain(params, x, t, cond, key))

  return switched


def _check_scale(scale: float | None) -> None:
  if scale is not None and not math.isfinite(scale):
    raise ValueError(f"A guidance scale must be finite, got {scale}: 1 is no guidance.")


def _split_scale(scale: float | None, cond: Cond, x: Array) -> tuple[Array | float, Cond]:
  """w, to multiply F with, and the cond for the network."""
  if scale is not None:
    return scale, cond
  if "guidance" not in cond:
    raise ValueError(
      f'Guidance without a scale reads cond["guidance"], got {sorted(cond) or "an empty cond"}: '
      "put one scale per sample there, or fix the scale when making the guided network."
    )
  w = jnp.asarray(cond["guidance"], x.dtype)
  return trigflow.per_sample(w, x), {
    name: value for name, value in cond.items() if name != "guidance"
  }


def _extrapolate(F: Array, F_guide: Array, w: Array | float) -> Array:
  return F_guide + w * (F - F_guide)
