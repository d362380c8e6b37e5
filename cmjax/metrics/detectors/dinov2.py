"""DINOv2's ViT-L/14 (Oquab et al. 2023), the detector of FD-DINOv2 (Stein et al. 2023).

- features: the class token behind the last norm, 1024.

The tensors' names are those of dinov2_vitl14_pretrain.pth. Its position embeddings are for images
of 518 pixels; at 224 they are interpolated, by the authors' code with a scale that is a little off
(16.1 patches for 16), which the published features have in them.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.metrics.detectors import resize
from cmjax.metrics.detectors.layers import Conv, LayerNorm, Linear
from cmjax.metrics.detectors.network import Input, Pretrained
from cmjax.types import Array

PATCH, GRID = 14, 37  # pixels of a patch's side; patches of a side of the 518 pixels
OFFSET = 0.1  # patches, added to the side that position embeddings are interpolated to
EPS = 1e-6


class LayerScale(nnx.Module):
  """A factor a channel (Touvron et al. 2021)."""

  def __init__(self, width: int):
    self.gamma = nnx.Param(jnp.zeros(width))

  def __call__(self, x: Array) -> Array:
    """Scales each channel."""
    return x * self.gamma[...][None, None]


class Attention(nnx.Module):
  """Self-attention over tokens."""

  def __init__(self, width: int, num_heads: int):
    self.qkv = Linear(width, 3 * width)
    self.proj = Linear(width, width)
    self.num_heads = num_heads

  def __call__(self, x: Array) -> Array:
    """[n, tokens, width] of the same."""
    n, tokens, width = x.shape
    qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, width // self.num_heads)
    y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    return self.proj(y.reshape(n, tokens, width))


class MLP(nnx.Module):
  """Two linear maps around a GELU."""

  def __init__(self, width: int):
    self.fc1 = Linear(width, 4 * width)
    self.fc2 = Linear(4 * width, width)

  def __call__(self, x: Array) -> Array:
    """Token by token."""
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
  """A block with the norms in front."""

  def __init__(self, width: int, num_heads: int):
    self.norm1, self.norm2 = (LayerNorm(width, eps=EPS) for _ in range(2))
    self.ls1, self.ls2 = (LayerScale(width) for _ in range(2))
    self.attn = Attention(width, num_heads)
    self.mlp = MLP(width)

  def __call__(self, x: Array) -> Array:
    """Attention and MLP, each beside a residual."""
    x = x + self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nnx.Module):
  """The network, of normalised images [n, h, w, 3] whose sides are equal multiples of 14."""

  def __init__(self, *, width: int = 1024, depth: int = 24, num_heads: int = 16):
    self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
    self.pos_embed = nnx.Param(jnp.zeros((1, 1 + GRID**2, width)))
    self.patch_embed = nnx.Dict(proj=Conv(3, width, (PATCH, PATCH), stride=PATCH, use_bias=True))
    self.blocks = nnx.Dict({str(i): Block(width, num_heads) for i in range(depth)})
    self.norm = LayerNorm(width, eps=EPS)

  def __call__(self, x: Array) -> tuple[Array, None, None]:
    """features [n, width]; there are no others."""
    patches = self.patch_embed["proj"](x)
    n, side, _, width = patches.shape
    token = jnp.broadcast_to(self.cls_token[...], (n, 1, width))
    x = jnp.concatenate([token, patches.reshape(n, -1, width)], 1) + self._positions(side)
    for i in range(len(self.blocks)):
      x = self.blocks[str(i)](x)
    return self.norm(x)[:, 0], None, None

  def _positions(self, side: int) -> Array:
    """[1, 1 + side^2, width]."""
    embed = self.pos_embed[...]
    if side == GRID:
      return embed
    matrix = jnp.asarray(resize.bicubic(GRID, side, GRID / (side + OFFSET)), jnp.float32)
    grid = embed[0, 1:].reshape(GRID, GRID, -1)
    grid = jnp.einsum("ih,jw,hwc->ijc", matrix, matrix, grid)
    return jnp.concatenate([embed[:, :1], grid.reshape(1, side**2, -1)], 1)


_imagenet = functools.partial(
  Input,
  size=224,
  mean=(255 * 0.485, 255 * 0.456, 255 * 0.406),
  std=(255 * 0.229, 255 * 0.224, 255 * 0.225),
)
PRETRAINED = Pretrained(
  score="FD-DINOv2",
  dim=1024,
  module=DINOv2,
  inputs={
    # PyTorch's antialiased bicubic in float, without rounding: EDM2's default.
    "torch": _imagenet(resize="pil_bicubic"),
    # Pillow's on uint8, which rounds: that of Stein et al. (dgm-eval).
    "pil": _imagenet(resize="pil_bicubic_uint8"),
    # TensorFlow 1's bilinear, as torch-fidelity has it in front of DINOv2 too.
    "torch_fidelity": _imagenet(resize="legacy_bilinear"),
  },
  others=r"^mask_token$",
  origin="dinov2_vitl14_pretrain.pth, without registers",
)
