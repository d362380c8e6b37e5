"""Zero-shot editing with a consistency model (Song et al. 2023, algorithm 4).

Something linear about an image is known, the rest is to be invented. From what is known, noise and
denoise alternately as in sampling, and put what is known back after each step. The paper writes
this with an orthogonal map A and a mask Omega of the coordinates to generate:

  y = A^-1[(A image) (1 - Omega)],   x <- f(x_t, t),   x <- A^-1[(A y) (1 - Omega) + (A x) Omega]

With P = A^-1 (1 - Omega) A, the orthogonal projection onto what is known, that is y = P image and
x <- x - P x + y. Only the first column of A's Q matters then, so no QR is needed, and no matrix
product, which an accelerator would round to bfloat16.

The first step has noise of the full variance sigma_max^2 on top of y, as in the paper; the authors'
notebook starts without any. The usual times are `times.ode_times(40)` without the 0.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from cmjax import samplers, trigflow
from cmjax.samplers import Times
from cmjax.types import Array, Cond, NetFn, Params

LUMA = (0.2989, 0.5870, 0.1140)  # of R, G, B: the paper's gray value


def edit(
  net: NetFn,
  params: Params,
  key: Array,
  image: Array,
  known: Callable[[Array], Array],
  times: Times,
  *,
  sigma_data: float,
  sigma_min: float = 0.0,
  cond: Cond | None = None,
) -> Array:
  """Images which agree with `image` in what is known of it, and are otherwise the model's.

  Args:
    net: a consistency model's network.
    params: its weights.
    key: of all noise.
    image: [b, *d]; only known(image) matters.
    known: the orthogonal projection P onto what is known, linear, known(known(x)) = known(x).
    times: one decreasing angle per step, from t_max.
    sigma_data: std of data and noise.
    sigma_min: where the model's f is the identity: 0 on TrigFlow, 0.002 for CM and iCT.
    cond: arrays of b entries, if the network is conditional.

  Returns:
    [b, *d] with known(result) = known(image), to rounding.

  Raises:
    ValueError: times are not decreasing angles in (0, pi/2], or fall below sigma_min.
  """
  y = known(image)
  project = lambda x: x - known(x) + y
  return samplers.refine(
    net,
    params,
    key,
    y,
    times,
    sigma_data=sigma_data,
    sigma_min=sigma_min,
    cond=cond,
    project=project,
  )


def inpaint(
  net: NetFn, params: Params, key: Array, image: Array, mask: Array, times: Times, **kwargs
) -> Array:
  """Generate where the mask is True and keep every other pixel, to the last bit.

  Args:
    net: a consistency model's network.
    params: its weights.
    key: of all noise.
    image: [b, *d].
    mask: bool, with the axes of image; each is full, or 1 to hold for all.
    times: as for `edit`.
    **kwargs: sigma_data, sigma_min, cond of `edit`.
  """
  fits = mask.ndim == image.ndim and all(
    m in (1, n) for m, n in zip(mask.shape, image.shape, strict=True)
  )
  if not fits:
    raise ValueError(
      f"The mask's shape {mask.shape} must be that of the image, {image.shape}, or have 1 in its "
      "place: [1, h, w, 1] for one mask."
    )
  if mask.dtype != bool:
    raise ValueError(f"The mask must be bool, True where to generate, got {mask.dtype}: mask > 0.5")
  return edit(net, params, key, image, lambda x: jnp.where(mask, 0, x), times, **kwargs)


def colorize(net: NetFn, params: Params, key: Array, image: Array, times: Times, **kwargs) -> Array:
  """Colours for gray images; 0.2989 R + 0.5870 G + 0.1140 B stays what it is.

  Args:
    net: a consistency model's network.
    params: its weights.
    key: of all noise.
    image: RGB [b, h, w, 3], of which only that sum matters, or gray [b, h, w, 1].
    times: as for `edit`.
    **kwargs: sigma_data, sigma_min, cond of `edit`.

  Returns:
    [b, h, w, 3].
  """
  if image.ndim != 4 or image.shape[-1] not in (1, 3):
    raise ValueError(f"Colourisation needs images [b, h, w, 3] or [b, h, w, 1], got {image.shape}.")
  image = jnp.broadcast_to(image, (*image.shape[:-1], 3))
  q = np.array(LUMA) / np.linalg.norm(LUMA)
  q = jnp.asarray(q.reshape(1, 1, 1, 3), image.dtype)
  known = lambda x: q * jnp.sum(q * x, -1, keepdims=True)
  return edit(net, params, key, image, known, times, **kwargs)


def super_resolve(
  net: NetFn, params: Params, key: Array, image: Array, factor: int, times: Times, **kwargs
) -> Array:
  """Detail within patches of factor x factor pixels, whose means stay what they are.

  Args:
    net: a consistency model's network.
    params: its weights.
    key: of all noise.
    image: [b, h, w, c] of the final size; only the means matter, so repeat the pixels of a small
      one: `jnp.repeat(jnp.repeat(small, factor, 1), factor, 2)`.
    factor: side of a patch; divides h and w.
    times: as for `edit`.
    **kwargs: sigma_data, sigma_min, cond of `edit`.
  """
  if image.ndim != 4:
    raise ValueError(f"Super-resolution needs images [b, h, w, c], got shape {image.shape}.")
  b, h, w, c = image.shape
  if factor < 1 or h % factor or w % factor:
    common = math.gcd(h, w)
    raise ValueError(
      f"factor={factor} must divide the image's sides, {h} and {w}. Possible: "
      f"{[n for n in range(2, common + 1) if common % n == 0]}."
    )

  def known(x):
    patches = x.reshape(b, h // factor, factor, w // factor, factor, c)
    means = jnp.mean(patches, (2, 4), keepdims=True)
    return jnp.broadcast_to(means, patches.shape).reshape(x.shape)

  return edit(net, params, key, image, known, times, **kwargs)


def stroke_to_image(
  net: NetFn, params: Params, key: Array, image: Array, times: Times, **kwargs
) -> Array:
  """A realistic image from coloured strokes (SDEdit; Meng et al. 2022): noise them, sample on.

  Nothing is put back: the strokes steer through the first step, whose noise does not drown them.

  Args:
    net: a consistency model's network.
    params: its weights.
    key: of all noise.
    image: the strokes [b, *d].
    times: one decreasing angle per step; the paper's are
      `samplers.conventions.consistency_times_from_sigmas(5.38, 2.24)`.
    **kwargs: sigma_data, sigma_min, cond of `edit`.
  """
  return samplers.refine(net, params, key, image, times, **kwargs)


def slerp(z_a: Array, z_b: Array, weight: Array) -> Array:
  """From z_a (weight 0) to z_b (1) along a great circle, so that noise stays of noise's length.

    (sin((1 - w) psi) z_a + sin(w psi) z_b) / sin psi,   psi the angle between z_a and z_b

  Where they are parallel it is the limit, linear interpolation; opposite ones have no circle.

  Args:
    z_a: [b, *d].
    z_b: [b, *d].
    weight: [b].
  """
  flat_a, flat_b = z_a.reshape(len(z_a), -1), z_b.reshape(len(z_b), -1)
  norms = jnp.linalg.norm(flat_a, axis=-1) * jnp.linalg.norm(flat_b, axis=-1)
  psi = jnp.arccos(jnp.clip(jnp.sum(flat_a * flat_b, -1) / norms, -1, 1))
  parallel = psi < 1e-3  # the limit is then right to 1e-6, and sin psi is far from 0 elsewhere
  safe = jnp.where(parallel, 1.0, psi)
  part = lambda w: jnp.where(parallel, w, jnp.sin(w * safe) / jnp.sin(safe))
  return (
    trigflow.per_sample(part(1 - weight), z_a) * z_a + trigflow.per_sample(part(weight), z_b) * z_b
  )


def interpolate(
  net: NetFn,
  params: Params,
  z_a: Array,
  z_b: Array,
  num: int,
  *,
  t: float,
  sigma_data: float,
  cond: Cond | None = None,
) -> Array:
  """One-step samples along the great circle from noise z_a to noise z_b.

  Args:
    net: a consistency model's network.
    params: its weights.
    z_a: noise of std sigma_data [b, *d], as `trigflow.noise` draws it.
    z_b: [b, *d].
    num: samples per pair, both ends included; at least 2.
    t: where to start, arctan(sigma_max / sigma_data).
    sigma_data: std of data and noise.
    cond: arrays of b entries, if the network is conditional: one per pair.

  Returns:
    x_0 [num, b, *d].
  """
  if z_a.shape != z_b.shape:
    raise ValueError(f"Both ends need one shape, got {z_a.shape} and {z_b.shape}.")
  if num < 2:
    raise ValueError(f"num={num} must be at least 2: both ends are included.")
  if not 0 < t <= math.pi / 2 + 1e-6:
    raise ValueError(f"t must be an angle in (0, pi/2], got {t}: for EDM noise levels use "
                     "trigflow.sigma_to_t.")  # fmt: skip
  tile = lambda a: jnp.tile(a, (num,) + (1,) * (a.ndim - 1))
  weight = jnp.repeat(jnp.linspace(0.0, 1.0, num, dtype=z_a.dtype), len(z_a))
  z = slerp(tile(z_a), tile(z_b), weight)
  times = jnp.full(len(z), t, z.dtype)
  x_t = trigflow.interpolate(jnp.zeros_like(z), z, times)
  cond = {name: tile(value) for name, value in (cond or {}).items()}
  F = net(params, x_t / sigma_data, times, cond, None)
  return trigflow.denoise(x_t, sigma_data * F, times).reshape(num, *z_a.shape)
