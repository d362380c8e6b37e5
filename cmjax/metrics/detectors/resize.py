"""Resizes, each as the matrix [n_out, n_in] by which one axis is multiplied.

All are linear and separable, so a kernel is where the n_out samples lie and how the pixels around
them are weighted. That is where pipelines differ: with a scale s = n_in / n_out, output i lies at

  i s                  TensorFlow 1's `resize_bilinear` with align_corners=False ("legacy"),
  (i + 1/2) s - 1/2    everybody else ("half-pixel": pixels are squares, not points),

in units of input pixels; and a kernel that is `antialias`ed is widened by s where s > 1, as
Pillow's always are (Parmar et al. 2022 show what it does to an FID).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from PIL import Image

from cmjax.types import Array


def legacy_bilinear(n_in: int, n_out: int) -> np.ndarray:
  """TensorFlow 1's `resize_bilinear`, align_corners=False, half_pixel_centers=False."""
  # In float32, as there: the cell that a sample on its border falls into is decided by rounding.
  x = np.arange(n_out, dtype=np.float32) * (np.float32(n_in) / np.float32(n_out))
  return _two_taps(x, n_in)


def grid_bilinear(n_in: int, n_out: int) -> np.ndarray:
  """The resize inside StyleGAN3's detector: PyTorch's `affine_grid` and `grid_sample`, border.

  The affine map shifts the grid by 1 / n_in - 1 / n_out, so that the samples lie where
  `legacy_bilinear` has them; in float32 they differ by rounding.
  """
  f = np.float32
  g = np.linspace(-1, 1, n_out, dtype=f) * f((n_out - 1) / n_out) + (f(1 / n_in) - f(1 / n_out))
  x = ((g + 1) * f(n_in) - 1) / 2
  return _two_taps(np.clip(x, 0, n_in - 1), n_in)


def half_pixel_bilinear(n_in: int, n_out: int) -> np.ndarray:
  """PyTorch's `F.interpolate(mode="bilinear", align_corners=False)`, without antialias."""
  x = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
  return _two_taps(np.maximum(x, 0), n_in)


def _two_taps(x: np.ndarray, n_in: int) -> np.ndarray:
  """Linear interpolation at x >= 0, where beyond the last pixel there is the last pixel."""
  low = np.floor(x).astype(int)
  matrix, rows = np.zeros((len(x), n_in)), np.arange(len(x))
  np.add.at(matrix, (rows, low), 1 - (x - low))
  np.add.at(matrix, (rows, np.minimum(low + 1, n_in - 1)), x - low)
  return matrix


def pil_bilinear(n_in: int, n_out: int) -> np.ndarray:
  """Pillow's BILINEAR: half-pixel, antialiased."""
  return _antialiased(lambda x: np.maximum(1 - x, 0), 1.0, n_in, n_out)


def pil_bicubic(n_in: int, n_out: int) -> np.ndarray:
  """Pillow's BICUBIC: half-pixel, antialiased; PyTorch's bicubic with antialias=True as well."""
  return _antialiased(lambda x: _keys(x, -0.5), 2.0, n_in, n_out)


def _antialiased(kernel: Callable, support: float, n_in: int, n_out: int) -> np.ndarray:
  scale = n_in / n_out
  wide = max(scale, 1.0)
  centre = (np.arange(n_out)[:, None] + 0.5) * scale
  pixel = np.arange(n_in)[None]
  # Pillow rounds the ends of the window; a tap cut off so has a weight of 0 but for rounding.
  first = np.floor(centre - support * wide + 0.5)
  last = np.floor(centre + support * wide + 0.5)
  weights = kernel(np.abs(pixel + 0.5 - centre) / wide) * ((first <= pixel) & (pixel < last))
  return weights / weights.sum(1, keepdims=True)


def bicubic(n_in: int, n_out: int, scale: float) -> np.ndarray:
  """PyTorch's `F.interpolate(mode="bicubic", scale_factor=1 / scale)`, without antialias.

  Unlike the others it is told the scale apart from the sizes: of DINOv2's position embeddings they
  do not agree.
  """
  x = (np.arange(n_out) + 0.5) * scale - 0.5
  matrix, rows = np.zeros((n_out, n_in)), np.arange(n_out)
  for tap in range(-1, 3):
    pixel = np.floor(x).astype(int) + tap
    weight = _keys(np.abs(x - pixel), -0.75)
    np.add.at(matrix, (rows, np.clip(pixel, 0, n_in - 1)), weight)
  return matrix


def _keys(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel of Keys (1981) at distances x >= 0."""
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


KERNELS: dict[str, Callable[[int, int], np.ndarray]] = {
  "legacy_bilinear": legacy_bilinear,
  "grid_bilinear": grid_bilinear,
  "half_pixel_bilinear": half_pixel_bilinear,
  "pil_bilinear": pil_bilinear,
  "pil_bicubic": pil_bicubic,
}


def apply(images: Array, kernel: str, size: int) -> Array:
  """Images [n, h, w, c] at [n, size, size, c], float32, by a kernel of `KERNELS`; no rounding."""
  down, across = (
    jnp.asarray(KERNELS[kernel](n_in, size), jnp.float32) for n_in in images.shape[1:3]
  )
  images = jnp.einsum("pw,nhwc->nhpc", across, images, precision="highest")  # first, as Pillow does
  return jnp.einsum("oh,nhpc->nopc", down, images, precision="highest")


def pil_bicubic_uint8(images: np.ndarray, size: int) -> np.ndarray:
  """Pillow's BICUBIC of uint8 images [n, h, w, c], by Pillow: it rounds after each axis."""
  modes = [image[..., 0] if image.shape[-1] == 1 else image for image in images]
  resized = [
    Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in modes
  ]
  return np.stack([np.asarray(image) for image in resized]).reshape(len(images), size, size, -1)
