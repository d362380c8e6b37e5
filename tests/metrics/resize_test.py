"""Every resize against one written out pixel by pixel, and against those who define it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.metrics.detectors import resize

SIZES = [(7, 5, 11), (5, 9, 4), (32, 32, 299), (8, 8, 8)]  # height, width, to


def image(height, width, channels=3):
  shape = (2, height, width, channels)
  return np.random.default_rng(height + width).integers(0, 256, shape).astype(np.float32)


def resized(images, kernel, size):
  return np.asarray(resize.apply(jnp.asarray(images), kernel, size))


def by_hand(images, size, where, taps):
  """sum over pixels near `where(i)`, weighted by `taps(position) -> {pixel: weight}`."""
  n, height, width, c = images.shape
  out = np.zeros((n, size, size, c))
  for i in range(size):
    for j in range(size):
      for y, wy in taps(where(i, height, size), height).items():
        for x, wx in taps(where(j, width, size), width).items():
          out[:, i, j] += wy * wx * images[:, y, x].astype(np.float64)
  return out


def two_taps(position, n):
  low = math.floor(position)
  taps = {min(max(low, 0), n - 1): 0.0, min(max(low + 1, 0), n - 1): 0.0}
  taps[min(max(low, 0), n - 1)] += 1 - (position - low)
  taps[min(max(low + 1, 0), n - 1)] += position - low
  return taps


LEGACY = lambda i, n, size: i * n / size
HALF_PIXEL = lambda i, n, size: (i + 0.5) * n / size - 0.5


@pytest.mark.parametrize("height, width, size", [s for s in SIZES if s[2] < 100])
@pytest.mark.parametrize(
  "kernel, where",
  [("legacy_bilinear", LEGACY), ("grid_bilinear", LEGACY), ("half_pixel_bilinear", HALF_PIXEL)],
)
def test_bilinear_resizes_are_those_written_out(kernel, where, height, width, size):
  images = image(height, width)
  expected = by_hand(images, size, where, two_taps)
  # The grid's coordinates are float32 between -1 and 1: of a pixel's 255 that is a little more.
  atol = 255 * (5e-6 if kernel == "grid_bilinear" else 1e-6)
  np.testing.assert_allclose(resized(images, kernel, size), expected, rtol=0, atol=atol)


def test_bilinear_resizes_of_two_pixels_are_known():
  row = np.tile(np.array([0.0, 1.0], np.float32)[None, None, :, None], (1, 2, 1, 1))
  at = lambda kernel: resized(row, kernel, 4)[0, 0, :, 0]
  np.testing.assert_allclose(at("legacy_bilinear"), [0, 0.5, 1, 1], atol=1e-7)
  np.testing.assert_allclose(at("grid_bilinear"), [0, 0.5, 1, 1], atol=1e-6)
  np.testing.assert_allclose(at("half_pixel_bilinear"), [0, 0.25, 0.75, 1], atol=1e-7)


def pillow(images, size, method):
  """Of each image and channel in mode F, as clean-fid does it."""
  channel = lambda a: np.asarray(Image.fromarray(a).resize((size, size), method))
  return np.stack([np.stack([channel(a) for a in np.moveaxis(x, -1, 0)], -1) for x in images])


@pytest.mark.parametrize("height, width, size", SIZES)
@pytest.mark.parametrize("kernel", ["pil_bilinear", "pil_bicubic"])
def test_pil_resizes_are_pillows(kernel, height, width, size):
  images = image(height, width)
  method = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}
  expected = pillow(images, size, method[kernel])
  np.testing.assert_allclose(resized(images, kernel, size), expected, rtol=0, atol=255e-6)


def test_pil_bicubic_down_is_the_one_written_out():
  """A cubic of a = -1/2, as wide as 4 of the new pixels, and its weights made to sum to 1."""
  images, size = image(9, 12), 4

  def taps(position, n):
    scale = n / size
    weights = {}
    for pixel in range(n):
      x = abs(pixel - position) / scale
      near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
      weights[pixel] = near if x < 1 else far if x < 2 else 0.0
    return {pixel: w / sum(weights.values()) for pixel, w in weights.items()}

  expected = by_hand(images, size, HALF_PIXEL, taps)
  np.testing.assert_allclose(resized(images, "pil_bicubic", size), expected, rtol=0, atol=255e-6)


@pytest.mark.parametrize("kernel", resize.KERNELS)
def test_weights_of_every_pixel_sum_to_one_and_the_same_size_changes_nothing(kernel):
  for n_in, n_out in ((32, 299), (299, 32), (13, 299), (299, 299), (1, 7)):
    matrix = resize.KERNELS[kernel](n_in, n_out)
    assert matrix.shape == (n_out, n_in)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(resize.KERNELS[kernel](32, 32), np.eye(32), atol=1e-5)


def test_uint8_resize_is_the_one_in_float_rounded_twice():
  images = image(40, 30).astype(np.uint8)
  rounded = resize.pil_bicubic_uint8(images, 17)
  assert rounded.dtype == np.uint8 and rounded.shape == (2, 17, 17, 3)
  near = np.clip(resized(images.astype(np.float32), "pil_bicubic", 17), 0, 255)
  assert np.abs(rounded - near).max() <= 1.0
  grey = resize.pil_bicubic_uint8(images[..., :1], 17)
  np.testing.assert_array_equal(grey, rounded[..., :1])
