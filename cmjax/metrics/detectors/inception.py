"""Inception-v3 (Szegedy et al. 2016) as the FID uses it: TensorFlow's graph of 2015-12-05.

It is not torchvision's Inception-v3, nor Keras': its average pools do not count the padding, the
last block pools by the maximum (an oversight that has become the definition), its classes are 1008,
and its weights are its own. The tensors' names are torchvision's, as in the files of pytorch-fid
and torch-fidelity, which both hold this graph's weights.

- features: the means of the last block over pixels, 2048 ("pool_3").
- spatial: the first 7 channels of Mixed_6d, 7 x 17 x 17 = 2023, pixels first. In the TensorFlow
  graph that block is "mixed_6", and its first branch the "mixed_6/conv" of Nash et al. (2021).
- logits: of 1008 classes *without* the bias of the last layer, from which all of the usual codes
  compute the Inception score.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.metrics.detectors.layers import BatchNorm, Conv, Linear
from cmjax.metrics.detectors.network import Input, Pretrained
from cmjax.types import Array

SPATIAL_CHANNELS = 7
SHORT, TALL, WIDE = (3, 3), (7, 1), (1, 7)  # kernels (height, width)


class BasicConv2d(nnx.Module):
  """Convolution, batch normalisation, ReLU."""

  def __init__(
    self,
    cin: int,
    cout: int,
    size: tuple[int, int] = (1, 1),
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
  ):
    self.conv = Conv(cin, cout, size, stride=stride, padding=padding)
    self.bn = BatchNorm(cout, eps=1e-3)

  def __call__(self, x: Array) -> Array:
    """All three."""
    return jax.nn.relu(self.bn(self.conv(x)))


def same(cin: int, cout: int, size: tuple[int, int]) -> BasicConv2d:
  """A convolution of odd size that keeps the resolution."""
  return BasicConv2d(cin, cout, size, padding=(size[0] // 2, size[1] // 2))


def average_pool(x: Array) -> Array:
  """Means of 3 x 3 neighbours, stride 1; at the edges, of those that there are."""
  window = functools.partial(
    jax.lax.reduce_window, init_value=0.0, computation=jax.lax.add,
    window_dimensions=(1, 3, 3, 1), window_strides=(1, 1, 1, 1), padding="SAME",
  )  # fmt: skip
  return window(x) / window(jnp.ones((1, *x.shape[1:3], 1)))


def max_pool(x: Array, *, stride: int, padding: str) -> Array:
  """The largest of 3 x 3 neighbours."""
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
  )


def _concatenate(*branches: Array) -> Array:
  return jnp.concatenate(branches, -1)


class InceptionA(nnx.Module):
  """35 x 35."""

  def __init__(self, cin: int, pool: int):
    self.branch1x1 = BasicConv2d(cin, 64)
    self.branch5x5_1 = BasicConv2d(cin, 48)
    self.branch5x5_2 = same(48, 64, (5, 5))
    self.branch3x3dbl_1 = BasicConv2d(cin, 64)
    self.branch3x3dbl_2 = same(64, 96, SHORT)
    self.branch3x3dbl_3 = same(96, 96, SHORT)
    self.branch_pool = BasicConv2d(cin, pool)

  def __call__(self, x: Array) -> Array:
    """224 channels and those of the pool."""
    double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    five = self.branch5x5_2(self.branch5x5_1(x))
    return _concatenate(self.branch1x1(x), five, double, self.branch_pool(average_pool(x)))


class InceptionB(nnx.Module):
  """From 35 x 35 to 17 x 17."""

  def __init__(self, cin: int):
    self.branch3x3 = BasicConv2d(cin, 384, SHORT, stride=2)
    self.branch3x3dbl_1 = BasicConv2d(cin, 64)
    self.branch3x3dbl_2 = same(64, 96, SHORT)
    self.branch3x3dbl_3 = BasicConv2d(96, 96, SHORT, stride=2)

  def __call__(self, x: Array) -> Array:
    """480 channels more than there were."""
    double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    return _concatenate(self.branch3x3(x), double, max_pool(x, stride=2, padding="VALID"))


class InceptionC(nnx.Module):
  """17 x 17, with convolutions of 7 x 7 as 1 x 7 and 7 x 1."""

  def __init__(self, cin: int, width: int):
    self.branch1x1 = BasicConv2d(cin, 192)
    self.branch7x7_1 = BasicConv2d(cin, width)
    self.branch7x7_2 = same(width, width, WIDE)
    self.branch7x7_3 = same(width, 192, TALL)
    self.branch7x7dbl_1 = BasicConv2d(cin, width)
    self.branch7x7dbl_2 = same(width, width, TALL)
    self.branch7x7dbl_3 = same(width, width, WIDE)
    self.branch7x7dbl_4 = same(width, width, TALL)
    self.branch7x7dbl_5 = same(width, 192, WIDE)
    self.branch_pool = BasicConv2d(cin, 192)

  def __call__(self, x: Array) -> Array:
    """768 channels."""
    seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
    double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
    double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
    return _concatenate(self.branch1x1(x), seven, double, self.branch_pool(average_pool(x)))


class InceptionD(nnx.Module):
  """From 17 x 17 to 8 x 8."""

  def __init__(self, cin: int):
    self.branch3x3_1 = BasicConv2d(cin, 192)
    self.branch3x3_2 = BasicConv2d(192, 320, SHORT, stride=2)
    self.branch7x7x3_1 = BasicConv2d(cin, 192)
    self.branch7x7x3_2 = same(192, 192, WIDE)
    self.branch7x7x3_3 = same(192, 192, TALL)
    self.branch7x7x3_4 = BasicConv2d(192, 192, SHORT, stride=2)

  def __call__(self, x: Array) -> Array:
    """512 channels more than there were."""
    seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
    three = self.branch3x3_2(self.branch3x3_1(x))
    return _concatenate(three, self.branch7x7x3_4(seven), max_pool(x, stride=2, padding="VALID"))


class InceptionE(nnx.Module):
  """8 x 8; the last of the two pools by the maximum, as the graph of 2015 does."""

  def __init__(self, cin: int, pool: str):
    self.branch1x1 = BasicConv2d(cin, 320)
    self.branch3x3_1 = BasicConv2d(cin, 384)
    self.branch3x3_2a = same(384, 384, (1, 3))
    self.branch3x3_2b = same(384, 384, (3, 1))
    self.branch3x3dbl_1 = BasicConv2d(cin, 448)
    self.branch3x3dbl_2 = same(448, 384, SHORT)
    self.branch3x3dbl_3a = same(384, 384, (1, 3))
    self.branch3x3dbl_3b = same(384, 384, (3, 1))
    self.branch_pool = BasicConv2d(cin, 192)
    self.pool = pool

  def __call__(self, x: Array) -> Array:
    """2048 channels."""
    three = self.branch3x3_1(x)
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    pooled = average_pool(x) if self.pool == "average" else max_pool(x, stride=1, padding="SAME")
    return _concatenate(
      self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three),
      self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled),
    )  # fmt: skip


class Inception(nnx.Module):
  """The network, of normalised images [n, 299, 299, 3]."""

  def __init__(self):
    self.Conv2d_1a_3x3 = BasicConv2d(3, 32, SHORT, stride=2)
    self.Conv2d_2a_3x3 = BasicConv2d(32, 32, SHORT)
    self.Conv2d_2b_3x3 = same(32, 64, SHORT)
    self.Conv2d_3b_1x1 = BasicConv2d(64, 80)
    self.Conv2d_4a_3x3 = BasicConv2d(80, 192, SHORT)
    self.Mixed_5b = InceptionA(192, 32)
    self.Mixed_5c = InceptionA(256, 64)
    self.Mixed_5d = InceptionA(288, 64)
    self.Mixed_6a = InceptionB(288)
    self.Mixed_6b = InceptionC(768, 128)
    self.Mixed_6c = InceptionC(768, 160)
    self.Mixed_6d = InceptionC(768, 160)
    self.Mixed_6e = InceptionC(768, 192)
    self.Mixed_7a = InceptionD(768)
    self.Mixed_7b = InceptionE(1280, "average")
    self.Mixed_7c = InceptionE(2048, "max")
    self.fc = Linear(2048, 1008)

  def __call__(self, x: Array) -> tuple[Array, Array, Array]:
    """features [n, 2048], spatial [n, 2023], logits [n, 1008] without bias."""
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = self.Conv2d_3b_1x1(max_pool(x, stride=2, padding="VALID"))
    x = max_pool(self.Conv2d_4a_3x3(x), stride=2, padding="VALID")
    x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
    x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
    spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
    features = x.mean((1, 2))
    return features, spatial, self.fc(features, biased=False)


_signed = functools.partial(Input, size=299, mean=(128.0,), std=(128.0,))
PRETRAINED = Pretrained(
  score="FID",
  dim=2048,
  module=Inception,
  inputs={
    # TensorFlow's own, torch-fidelity's, and torchmetrics'.
    "tf_legacy": _signed(resize="legacy_bilinear"),
    # pytorch-fid's: 2 x - 1 for x in [0, 1].
    "pytorch_fid": Input(size=299, resize="half_pixel_bilinear", mean=(127.5,), std=(127.5,)),
    # clean-fid's "clean": Pillow in float, then cut to [0, 255] without rounding.
    "clean": _signed(resize="pil_bicubic", clip=True),
    # StyleGAN3's TorchScript detector, of EDM and EDM2. From what is known of its program; that it
    # holds the same weights as the files above, up to rounding, is unconfirmed.
    "edm": _signed(resize="grid_bilinear"),
  },
  others=r"num_batches_tracked$",
  origin="pytorch-fid's or torch-fidelity's file of the graph of 2015-12-05; not torchvision's",
)
