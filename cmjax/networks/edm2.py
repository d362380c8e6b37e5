"""EDM2: the magnitude-preserving U-Net of Karras et al. 2024, with the changes of sCM.

The U-Net is their configuration G (arXiv 2312.02696, appendix B): same layers, same names
(`enc/64x64_block0/conv_res0`, ...), same parameter counts. The sizes differ in `channels` alone:
XXS 64, XS 128, S 192, M 256, L 320, XL 384, XXL 448. As in `DDPMpp`, the time is embedded as it
comes, and blocks can have sCM's adaptive double normalisation (arXiv 2410.11081, sec. 4.1).
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax import embeddings
from cmjax.base.ranges import Positive, Share, Size, SizeOrNone
from cmjax.networks.attention import attend, check_implementation, split_heads
from cmjax.networks.layers import (
  Module,
  check_dropout,
  condition_rows,
  dropout,
  label_rows,
  modulate,
  pnorm,
  resample,
)
from cmjax.networks.magnitude import MPConv, MPFourier, MPLinear, mp_cat, mp_silu, mp_sum, normalize
from cmjax.networks.run_blocks import decode, encode
from cmjax.networks.unet import (
  BlockSpec,
  check_attn_resolutions,
  check_choice,
  check_input,
  decoder_specs,
  encoder_specs,
  level_resolutions,
  num_heads,
)
from cmjax.types import Cond, Time

# How a block takes in the embedding, and how many numbers per channel it needs for that.
MODULATIONS = {"edm2": 1, "pnorm_scale": 1, "pnorm_scale_shift": 2}
EMBEDDINGS = ("positional", "mp_fourier")

BALANCE = 0.3  # the share of a residual branch, and of attention, in a sum
LIMIT = 256.0  # of what a block puts out


class EDM2Block(Module):
  """Two convolutions with the embedding between them, and optional attention, each added by 0.3.

  An encoder's block first brings x to its width and normalises each pixel; a decoder's keeps the
  concatenated x for conv_res0 and brings the straight path to its width afterwards. With
  a = emb_linear(e) and y after conv_res0 the modulation is

  * "edm2":              y (1 + emb_gain a), with one scalar emb_gain per block that starts at 0;
  * "pnorm_scale":       pnorm(y) pnorm(a);
  * "pnorm_scale_shift": pnorm(y) pnorm(s) + pnorm(b), where s and b are the halves of a: sCM's
    adaptive double normalisation.

  Attention normalises v as it does q and k. The output is limited to [-256, 256], as in the paper:
  it is for what float16 can hold, and no network in good health comes near it.
  """

  def __init__(
    self,
    spec: BlockSpec,
    embed: int,
    *,
    encoder: bool,
    modulation: str,
    dropout: float,
    channels_per_head: int,
    attention: str = "auto",
    rngs: nnx.Rngs,
  ):
    cin, cout = spec.cin, spec.cout
    self.modulation, self.dropout, self.attention = modulation, dropout, attention
    self.encoder, self.resample = encoder, spec.resample
    self.emb_gain = nnx.Param(jnp.zeros(())) if modulation == "edm2" else None
    self.emb_linear = MPLinear(embed, MODULATIONS[modulation] * cout, rngs=rngs)
    self.conv_res0 = MPConv(cout if encoder else cin, cout, 3, rngs=rngs)
    self.conv_res1 = MPConv(cout, cout, 3, rngs=rngs)
    self.conv_skip = None if cin == cout else MPConv(cin, cout, 1, rngs=rngs)
    self.num_heads = num_heads(spec, channels_per_head) if spec.attention else 0
    if self.num_heads:
      self.attn_qkv = MPConv(cout, 3 * cout, 1, rngs=rngs)
      self.attn_proj = MPConv(cout, cout, 1, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w cin"], e: Float[Array, "b e"], key: Array | None
  ) -> Float[Array, "b h2 w2 cout"]:
    """The block's output for x and the embedding e; dropout only with a key."""
    x = resample(x, self.resample)
    if self.encoder:
      x = normalize(self._straight(x))
    y = mp_silu(self._modulate(self.conv_res0(mp_silu(x)), e))
    y = self.conv_res1(dropout(y, self.dropout, key))
    x = mp_sum(x if self.encoder else self._straight(x), y, BALANCE)
    if self.num_heads:
      x = mp_sum(x, self._attend(x), BALANCE)
    return jnp.clip(x, -LIMIT, LIMIT)

  def _straight(self, x: Array) -> Array:
    return x if self.conv_skip is None else self.conv_skip(x)

  def _modulate(self, y: Array, e: Array) -> Array:
    if self.emb_gain is not None:
      a = self.emb_linear(e, self.emb_gain[...])[:, None, None, :]
      return modulate(y, a, None, bounded=False)
    a = self.emb_linear(e)[:, None, None, :]
    scale, *shift = jnp.split(a, MODULATIONS[self.modulation], axis=-1)
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    y = pnorm(wide).astype(y.dtype)
    return modulate(y, scale, shift[0] if shift else None, bounded=True)

  def _attend(self, x: Array) -> Array:
    qkv = normalize(split_heads(self.attn_qkv(x), self.num_heads), axis=3)
    return self.attn_proj(attend(qkv, self.attention).reshape(x.shape))


class MPCondition(Module):
  """(e + g a) / sqrt(1 + g^2), with a linear in sqrt(2) times an embedding, and a gain g from 0 on.

  `mp_sum` with a balance that is learned: the mean square stays 1 at any g, and at 0 it is e.
  """

  def __init__(self, channels: int, embed: int, *, rngs: nnx.Rngs):
    self.gain = nnx.Param(jnp.zeros(()))
    self.linear = MPLinear(channels, embed, rngs=rngs)

  def __call__(self, e: Float[Array, "b e"], rows: Float[Array, "b n"]) -> Float[Array, "b e"]:
    """The embedding with one more condition, of which `rows` is the positional embedding."""
    g = self.gain[...]
    a = self.linear(math.sqrt(2) * rows.astype(e.dtype))
    return (e + g * a) / jnp.sqrt(1 + g**2)


class EDM2(Module):
  """F(x, t) for images or latents, by the EDM2 U-Net. The defaults are size S for ImageNet-64.

  F is exactly 0 at the start, where only `out_gain` has a gradient. Reads cond["label"] [b] where
  `num_classes` is not 0 (-1 means no condition; a label beyond the classes counts as -1), and
  cond["guidance"] and cond["segment"] [b] where it was built with them. Each of these two joins the
  embedding as (e + g a) / sqrt(1 + g^2), a sum that keeps magnitudes at any gain g; g starts at 0,
  so that a student starts as its teacher (see `networks.grow`).

  Args:
    resolution: side of the images; divisible by 2 as often as there are levels below the first.
    in_channels: channels of the images: 3, or 4 for the latents of the SD-VAE.
    channels: base width, which is also that of the embedding of t; even. See the module for sizes.
    channel_mult: width of each level as a multiple of `channels`, highest resolution first.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    attn_resolutions: resolutions whose blocks have self-attention, in encoder and decoder. One
      block at the lowest resolution has it in any case.
    dropout: rate, in each block.
    dropout_resolution: the largest side of images at which there is dropout; None: everywhere.
    num_classes: 0 for a network without labels.
    embed_mult: width of the embedding that the blocks see, as a multiple of `channels`.
    channels_per_head: of the attention.
    modulation: "pnorm_scale_shift" (sCM), "edm2" (for the published weights) or "pnorm_scale"; see
      `EDM2Block`.
    embedding: of the time, "positional" (sCM; times sqrt(2), for a mean square of 1) or
      "mp_fourier" (EDM2, which embeds ln(sigma) / 4).
    fourier_scale: of the frequencies; 1 in EDM2. Used by embedding="mp_fourier" only.
    guidance: whether the network is told the scale of its guidance (sCM).
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    attention: how it is computed, an implementation of `attention.attention`.
    remat: whether the backward pass computes each block again instead of keeping its activations.
    scan: whether neighbouring blocks that are equal are compiled once; see `run_blocks`.
    rngs: where the initial values come from.

  Raises:
    ValueError: for a shape that is not a U-Net's, an attention resolution that never occurs, widths
      that do not divide into heads, an unknown modulation, embedding or attention, a scale of the
      frequencies that is not positive, or a dropout rate outside [0, 1); while tracing, for inputs
      of another shape, or a condition that is missing or not expected.
  """

  # All of them: a layer casts its weights to the dtype of the body after it has normalised them.
  float32_paths = (r"(kernel|gain|freqs|phases)$",)
  # The weights that forced normalisation holds at unit norm.
  normalized_paths = (r"kernel$",)

  def __init__(
    self,
    resolution: Size = 64,
    in_channels: Size = 3,
    channels: Size = 192,
    channel_mult: tuple[Size, ...] = (1, 2, 3, 4),
    num_blocks: SizeOrNone = 3,
    attn_resolutions: tuple[Size, ...] = (16, 8),
    dropout: Share = 0.0,
    dropout_resolution: Size | None = None,
    num_classes: SizeOrNone = 0,
    embed_mult: Size = 4,
    channels_per_head: Size = 64,
    modulation: str = "pnorm_scale_shift",
    embedding: str = "positional",
    fourier_scale: Positive = 1.0,
    guidance: bool = False,
    segment: bool = False,
    attention: str = "auto",
    remat: bool = False,
    scan: bool = False,
    *,
    rngs: nnx.Rngs,
  ):
    resolutions = level_resolutions(resolution, len(channel_mult))
    check_attn_resolutions(resolutions, attn_resolutions)
    check_choice("modulation", modulation, sorted(MODULATIONS))
    check_choice("embedding", embedding, EMBEDDINGS)
    check_implementation(attention)
    check_dropout(dropout)
    widths = tuple(channels * m for m in channel_mult)
    plan = (resolutions, (widths[0], *widths), num_blocks, tuple(attn_resolutions))
    self.enc_specs = tuple(encoder_specs(*plan))
    self.dec_specs = tuple(decoder_specs(*plan, attend_in_all=True))
    self.image_shape = (resolution, resolution, in_channels)
    self.channels, self.num_classes = channels, num_classes
    self.remat, self.scan = remat, scan
    embed = embed_mult * channels
    self.emb_noise = MPLinear(channels, embed, rngs=rngs)
    if num_classes:
      self.emb_label = MPLinear(num_classes, embed, rngs=rngs)
    options: dict[str, Any] = dict(
      modulation=modulation, channels_per_head=channels_per_head, attention=attention, rngs=rngs
    )

    def block(spec, encoder):
      rate = spec.dropout(dropout, dropout_resolution)
      return EDM2Block(spec, embed, encoder=encoder, dropout=rate, **options)

    self.first = f"{resolution}x{resolution}_conv"
    self.enc: Any = nnx.Dict({s.name: block(s, True) for s in self.enc_specs})
    self.enc[self.first] = MPConv(in_channels + 1, widths[0], 3, rngs=rngs)
    self.dec: Any = nnx.Dict({s.name: block(s, False) for s in self.dec_specs})
    self.out_conv = MPConv(widths[0], in_channels, 3, rngs=rngs)
    self.out_gain = nnx.Param(jnp.zeros(()))

    # Last, so that all other initial weights are those of a network without them.
    self.embedding, self.guidance, self.segment = embedding, guidance, segment
    self._make_conditions(embed, fourier_scale, rngs=rngs)

  def _make_conditions(self, embed: int, fourier_scale: float, *, rngs: nnx.Rngs) -> None:
    """The layers that `embedding`, `guidance` and `segment` ask for."""
    if self.embedding == "mp_fourier":
      self.emb_fourier = MPFourier(self.channels, fourier_scale, rngs=rngs)
    if self.guidance:
      self.map_guidance = MPCondition(self.channels, embed, rngs=rngs)
    if self.segment:
      self.map_segment = MPCondition(self.channels, embed, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w c"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b h w c"]:
    """F for x [b, resolution, resolution, in_channels] and the times [b] that are embedded.

    Dropout only with `rngs`.
    """
    check_input(x, t, self.image_shape)
    e = self._embed(t, cond)
    # The channel of ones stands in for the biases that no layer has.
    x = self.enc[self.first](jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1))
    x = decode(self, encode(self, x, e, rngs), e, rngs, mp_cat)
    return self.out_conv(x, self.out_gain[...])

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees."""
    if self.embedding == "mp_fourier":
      e = self.emb_fourier(t)
    else:
      e = math.sqrt(2) * embeddings.positional(t, self.channels)
    e = self.emb_noise(e)
    if self.num_classes:
      rows = label_rows(cond, self.num_classes).astype(e.dtype)
      e = mp_sum(e, self.emb_label(rows))
    if self.guidance:
      e = self.map_guidance(e, condition_rows(cond, "guidance", t, self.channels))
    if self.segment:
      e = self.map_segment(e, condition_rows(cond, "segment", t, self.channels))
    return mp_silu(e)
