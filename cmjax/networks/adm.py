"""ADM: the U-Net of Dhariwal and Nichol 2021 as Karras et al. 2022 train it on ImageNet-64.

CM and iCT use it there as well; iCT without its scale-and-shift normalisation, with which
consistency training diverges (arXiv 2410.11081, sec. 4.1). The U-Net is EDM's `DhariwalUNet`: same
layers, same initial distributions, same names, same parameter count. As in `ddpmpp`, the time is
embedded as it comes, and the switches of sCM are there.
"""

import math
from typing import Any

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax.base.ranges import Positive, Share, Size, SizeOrNone
from cmjax.networks.layers import Conv, GroupNorm, Linear, Module, label_rows
from cmjax.networks.run_blocks import concatenate, decode, encode
from cmjax.networks.unet import (
  Style,
  add_conditions,
  check_input,
  check_options,
  decoder_specs,
  embed_time,
  encoder_specs,
  level_resolutions,
  make_blocks,
  make_conditions,
)
from cmjax.types import Cond, Time

# Of all layers that do not start at 0: with "kaiming", U(-a, a) with a = sqrt(1 / fan_in).
GAIN = math.sqrt(1 / 3)


class ADM(Module):
  """F(x, t) for images, by the ADM U-Net. The defaults are EDM's for ImageNet-64.

  F is exactly 0 at the start, and so is each residual branch. Reads cond["label"] [b] where
  `num_classes` is not 0 (-1 means no condition; a label beyond the classes counts as -1),
  cond["augment"] [b, augment_dim] where it is there, and cond["guidance"] and cond["segment"] [b]
  where it was built with them; their layers start at 0, so that a student starts as its teacher
  (see `networks.grow`).

  Args:
    resolution: side of the images; divisible by 2 as often as there are levels below the first.
    in_channels: channels of the images.
    channels: base width, and width of the embedding of t; a multiple of 4.
    channel_mult: width of each level as a multiple of `channels`, highest resolution first.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    attn_resolutions: resolutions whose blocks all have self-attention, those that change the
      resolution apart. One block at the lowest resolution has it in any case.
    dropout: rate, in each block.
    dropout_resolution: the largest side of images at which there is dropout; None: everywhere.
    num_classes: 0 for a network without labels.
    augment_dim: 0 for a network that is never told of augmentations.
    embed_mult: width of the two layers after the embedding, as a multiple of `channels`.
    channels_per_head: of the attention; a divisor of the width of each level that has it.
    modulation: "scale_shift" (ADM), "additive" (iCT), "pnorm_scale_shift" (sCM) or
      "pnorm_scale"; see `UNetBlock`.
    embedding: of the time, "positional" or "fourier".
    fourier_scale: standard deviation of the Fourier frequencies; used by embedding="fourier" only.
    qk_norm: "none" or "rms", of the attention; see `unet.rms_norm_qk`.
    attention: how it is computed, an implementation of `attention.attention`.
    remat: whether a gradient computes the inside of each block again instead of storing it.
    scan: whether neighbouring blocks that are equal are compiled once; see `run_blocks`.
    guidance: whether the network is told the scale of its guidance (sCM).
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    rngs: where the initial values come from.

  Raises:
    ValueError: for a shape that is not a U-Net's, an attention resolution that never occurs, heads
      that do not fit, an unknown modulation, embedding, qk_norm or attention, a scale of the
      frequencies that is not positive, or a dropout rate outside [0, 1); while tracing, for inputs
      of another shape, or a condition that is missing or not expected.
  """

  float32_paths = (r"^map_", r"/affine/")

  def __init__(
    self,
    resolution: Size = 64,
    in_channels: Size = 3,
    channels: Size = 192,
    channel_mult: tuple[Size, ...] = (1, 2, 3, 4),
    num_blocks: SizeOrNone = 3,
    attn_resolutions: tuple[Size, ...] = (32, 16, 8),
    dropout: Share = 0.1,
    dropout_resolution: Size | None = None,
    num_classes: SizeOrNone = 1000,
    augment_dim: SizeOrNone = 0,
    embed_mult: Size = 4,
    channels_per_head: Size = 64,
    modulation: str = "scale_shift",
    embedding: str = "positional",
    fourier_scale: Positive = 16.0,
    qk_norm: str = "none",
    attention: str = "auto",
    remat: bool = False,
    scan: bool = False,
    guidance: bool = False,
    segment: bool = False,
    *,
    rngs: nnx.Rngs,
  ):
    style = Style(
      modulation, 1.0, 1e-5, resample_proj=False, channels_per_head=channels_per_head,
      qk_norm=qk_norm, attention=attention, init="kaiming", gain=GAIN, qkv_gain=GAIN, last_gain=0.0,
    )  # fmt: skip
    resolutions = level_resolutions(resolution, len(channel_mult))
    check_options(resolutions, attn_resolutions, embedding, style, dropout)
    self.image_shape = (resolution, resolution, in_channels)
    self.channels, self.num_classes, self.augment_dim = channels, num_classes, augment_dim
    self.remat, self.scan, embed = remat, scan, embed_mult * channels
    self._make_maps(embed, rngs=rngs)
    widths = tuple(channels * m for m in (channel_mult[0], *channel_mult))
    plan = (resolutions, widths, num_blocks, tuple(attn_resolutions))
    rates: dict[str, Any] = dict(dropout=dropout, dropout_resolution=dropout_resolution)
    self.enc_specs = tuple(encoder_specs(*plan))
    self.dec_specs = tuple(decoder_specs(*plan, attend_in_all=True))
    self.first = f"{resolution}x{resolution}_conv"
    self.enc: Any = make_blocks(self.enc_specs, embed, style, **rates, rngs=rngs)
    self.enc[self.first] = Conv(in_channels, widths[0], 3, init="kaiming", gain=GAIN, rngs=rngs)
    self.dec: Any = make_blocks(self.dec_specs, embed, style, **rates, rngs=rngs)
    self.out_norm = GroupNorm(widths[1], eps=style.eps)
    self.out_conv = Conv(widths[1], in_channels, 3, gain=0.0, rngs=rngs)

    # Last, so that all other initial weights are those of a network without them.
    self.embedding, self.guidance, self.segment = embedding, guidance, segment
    make_conditions(self, channels, fourier_scale, rngs=rngs)

  def _make_maps(self, embed: int, *, rngs: nnx.Rngs) -> None:
    """The layers that map time, augmentation and label to the embedding, `embed` wide."""
    kaiming: dict[str, Any] = dict(init="kaiming", gain=GAIN, rngs=rngs)
    if self.augment_dim:
      self.map_augment = Linear(
        self.augment_dim, self.channels, use_bias=False, gain=0.0, rngs=rngs
      )
    self.map_layer0 = Linear(self.channels, embed, **kaiming)
    self.map_layer1 = Linear(embed, embed, **kaiming)
    if self.num_classes:
      self.map_label = Linear(self.num_classes, embed, use_bias=False, init="normal", rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w c"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b h w c"]:
    """F for x [b, resolution, resolution, in_channels] and the times [b] that are embedded.

    Dropout only with `rngs`.
    """
    check_input(x, t, self.image_shape)
    e = self._embed(t, cond)
    x = self.enc[self.first](x)
    x = decode(self, encode(self, x, e, rngs), e, rngs, concatenate)
    return self.out_conv(jax.nn.silu(self.out_norm(x)))

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees; labels come after its layers."""
    # Frequencies 10000^(-i / half) with i < half, which do not reach the endpoint 1 / 10000.
    half = self.channels // 2
    e = embed_time(self, t, self.channels, max_period=10_000 ** (1 - 1 / half))
    e = add_conditions(self, e, cond, t)
    e = self.map_layer1(jax.nn.silu(self.map_layer0(e)))
    if self.num_classes:
      e = e + self.map_label(label_rows(cond, self.num_classes, scaled=False))
    return jax.nn.silu(e)
