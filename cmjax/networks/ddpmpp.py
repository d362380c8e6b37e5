"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021 as Karras et al. 2022 train them, and sCM.

The U-Net is EDM's `SongUNet`: same layers, same initial distributions, same names
(`enc/32x32_block0/conv0`, ...), same parameter counts. Three things differ: the time is embedded as
it comes, which is the TrigFlow angle t unless the caller hands over EDM's ln(sigma) / 4; the blocks
can be modulated by sCM's adaptive double normalisation (arXiv 2410.11081, sec. 4.1); and the last
convolution starts at exactly 0, so F = 0.
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax.base.ranges import Positive, Range, Share, Size, SizeOrNone
from cmjax.networks.layers import BOX, Conv, GroupNorm, Linear, Module, label_rows
from cmjax.networks.run_blocks import concatenate, decode, encode
from cmjax.networks.unet import (
  Style,
  add_conditions,
  check_choice,
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

ENCODERS = ("standard", "residual")

# Factor on every sum of two paths, and initial gains: of the layers that end a residual branch, and
# of those that make q, k and v.
SKIP_SCALE, NEAR_ZERO, QKV_GAIN = math.sqrt(0.5), 1e-5, math.sqrt(0.2)


class DDPMpp(Module):
  """F(x, t) for images, by the DDPM++ U-Net. The defaults are EDM's for CIFAR-10.

  NCSN++ is embedding="fourier", noise_mult=2, fir=(1, 3, 3, 1) and encoder="residual"; as EDM
  trains both, modulation="additive".

  F is exactly 0 at the start. Reads cond["label"] [b] where `num_classes` is not 0 (-1 means no
  condition; a label beyond the classes counts as -1) and cond["augment"] [b, augment_dim] where it
  is there: the parameters of an augmentation, which the network is told so that they do not leak
  into samples. Reads cond["guidance"] and cond["segment"] [b] where it was built with them; their
  layers start at 0, so that a student starts as its teacher (see `networks.grow`).

  Args:
    resolution: side of the images; divisible by 2 as often as there are levels below the first.
    in_channels: channels of the images.
    channels: base width; a multiple of 4.
    channel_mult: width of each level as a multiple of `channels`, highest resolution first.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    attn_resolutions: resolutions whose blocks have self-attention. One block at the lowest
      resolution has it in any case.
    dropout: rate, in each block.
    dropout_resolution: the largest side of images at which there is dropout; None: everywhere.
    num_classes: 0 for a network without labels.
    augment_dim: 0 for a network that is never told of augmentations.
    embed_mult: width of the two layers after the embedding, as a multiple of `channels`.
    noise_mult: width of the embedding of t and of the conditions, likewise.
    modulation: "pnorm_scale_shift" (sCM), "pnorm_scale", "additive" (EDM) or "scale_shift"; see
      `UNetBlock`.
    embedding: of the time, "positional" (DDPM++) or "fourier" (NCSN++, CM, iCT).
    fourier_scale: standard deviation of the Fourier frequencies: 16 in EDM and CM, 0.02 in iCT
      (arXiv 2310.14189). Used by embedding="fourier" only.
    fir: taps of the filter that changes the resolution: (1, 1) or NCSN++'s (1, 3, 3, 1).
    encoder: "standard", or "residual" for NCSN++'s second path down, from the image itself.
    qk_norm: "none" or "rms", of the attention; see `unet.rms_norm_qk`.
    attention: how it is computed, an implementation of `attention.attention`.
    remat: whether a gradient computes the inside of each block again instead of storing it: less
      memory, about a third more time.
    scan: whether neighbouring blocks that are equal are compiled once; see `run_blocks`.
    guidance: whether the network is told the scale of its guidance (sCM).
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    rngs: where the initial values come from.

  Raises:
    ValueError: for a shape that is not a U-Net's, an attention resolution that never occurs, an
      unknown modulation, embedding, encoder, qk_norm or attention, a filter of odd length, a scale
      of the frequencies that is not positive, or a dropout rate outside [0, 1); while tracing, for
      inputs of another shape, or a condition that is missing or not expected.
  """

  float32_paths = (r"^map_", r"/affine/")

  def __init__(
    self,
    resolution: Size = 32,
    in_channels: Size = 3,
    channels: Size = 128,
    channel_mult: tuple[Size, ...] = (2, 2, 2),
    num_blocks: SizeOrNone = 4,
    attn_resolutions: tuple[Size, ...] = (16,),
    dropout: Share = 0.13,
    dropout_resolution: Size | None = None,
    num_classes: SizeOrNone = 0,
    augment_dim: SizeOrNone = 9,
    embed_mult: Size = 4,
    modulation: str = "pnorm_scale_shift",
    embedding: str = "positional",
    fourier_scale: Positive = 16.0,
    noise_mult: Size = 1,
    fir: tuple[Annotated[int, Range(-1_000, 1_000)], ...] = BOX,
    encoder: str = "standard",
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
      modulation, SKIP_SCALE, 1e-6, tuple(fir), qk_norm=qk_norm, attention=attention,
      qkv_gain=QKV_GAIN, last_gain=NEAR_ZERO,
    )  # fmt: skip
    resolutions = level_resolutions(resolution, len(channel_mult))
    check_options(resolutions, attn_resolutions, embedding, style, dropout)
    check_choice("encoder", encoder, ENCODERS)
    self.image_shape = (resolution, resolution, in_channels)
    self.num_classes, self.augment_dim = num_classes, augment_dim
    self.remat, self.scan = remat, scan
    self.noise_channels = noise = noise_mult * channels
    embed = embed_mult * channels
    self._make_maps(embed, rngs=rngs)
    widths = (channels, *(channels * m for m in channel_mult))
    plan = (resolutions, widths, num_blocks, tuple(attn_resolutions))
    rates: dict[str, Any] = dict(dropout=dropout, dropout_resolution=dropout_resolution)
    self.first = f"{resolution}x{resolution}_conv"
    self.enc_specs, self.dec_specs = tuple(encoder_specs(*plan)), tuple(decoder_specs(*plan))
    self.enc: Any = make_blocks(self.enc_specs, embed, style, **rates, rngs=rngs)
    self.enc[self.first] = Conv(in_channels, channels, 3, rngs=rngs)
    self.dec: Any = make_blocks(self.dec_specs, embed, style, **rates, rngs=rngs)
    self.last = f"{resolution}x{resolution}_aux"
    self.dec[f"{self.last}_norm"] = GroupNorm(widths[1])
    self.dec[f"{self.last}_conv"] = Conv(widths[1], in_channels, 3, gain=0.0, rngs=rngs)

    # Last, so that all other initial weights are those of a network without them.
    self.embedding, self.guidance, self.segment = embedding, guidance, segment
    make_conditions(self, noise, fourier_scale, rngs=rngs)
    self.residual = encoder == "residual"
    if self.residual:
      self._make_second_path(style.fir, rngs=rngs)

  def _make_maps(self, embed: int, *, rngs: nnx.Rngs) -> None:
    """The layers that map time, augmentation and label to the embedding, `embed` wide."""
    noise = self.noise_channels
    if self.num_classes:
      self.map_label = Linear(self.num_classes, noise, rngs=rngs)
    if self.augment_dim:
      self.map_augment = Linear(self.augment_dim, noise, use_bias=False, rngs=rngs)
    self.map_layer0 = Linear(noise, embed, rngs=rngs)
    self.map_layer1 = Linear(embed, embed, rngs=rngs)

  def _make_second_path(self, fir: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
    """The convolutions of NCSN++'s path down from the image, one where the resolution changes."""
    c = self.image_shape[-1]
    for spec in self.enc_specs:
      if spec.resample == "down":
        conv = Conv(c, spec.cout, 3, resample="fused_down", fir=fir, rngs=rngs)
        self.enc[_residual(spec)], c = conv, spec.cout

  def __call__(
    self, x: Float[Array, "b h w c"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b h w c"]:
    """F for x [b, resolution, resolution, in_channels] and the times [b] that are embedded.

    Dropout only with `rngs`.
    """
    check_input(x, t, self.image_shape)
    e = self._embed(t, cond)
    x = decode(self, self._encode(x, e, rngs), e, rngs, concatenate)
    return self.dec[f"{self.last}_conv"](jax.nn.silu(self.dec[f"{self.last}_norm"](x)))

  def _encode(self, x: Array, e: Array, rngs: nnx.Rngs | None) -> list[Array]:
    """What the encoder gives, from the first convolution on: all of it is for the decoder."""
    aux = x

    def add_image(spec, x):
      nonlocal aux
      aux = (x + self.enc[_residual(spec)](aux)) * SKIP_SCALE
      return aux

    return encode(self, self.enc[self.first](x), e, rngs, add_image if self.residual else None)

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees."""
    e = embed_time(self, t, self.noise_channels)
    cos, sin = jnp.split(e, 2, axis=-1)
    e = jnp.concatenate([sin, cos], axis=-1)  # EDM's order, for the sake of its checkpoints
    if self.num_classes:
      e = e + self.map_label(label_rows(cond, self.num_classes))
    e = add_conditions(self, e, cond, t)
    return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(e))))


def _residual(spec) -> str:
  """The name of the convolution that takes the second path down to the resolution of `spec`."""
  return f"{spec.resolution}x{spec.resolution}_aux_residual"
