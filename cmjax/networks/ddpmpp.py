"""DDPM++: the U-Net of Song et al. 2021 as Karras et al. 2022 train it, with the changes of sCM.

The U-Net is EDM's `SongUNet` with the standard encoder and decoder and the box filter: same
layers, same initial distributions, same names (`enc/32x32_block0/conv0`, ...), same parameter
counts. Three things differ: the time is embedded as it comes, which is the TrigFlow angle t unless
the caller hands over EDM's ln(sigma) / 4; the blocks can be modulated by sCM's adaptive double
normalisation (arXiv 2410.11081, sec. 4.1); and the last convolution starts at exactly 0, so F = 0.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax import embeddings
from cmjax.networks.attention import attend, split_heads
from cmjax.networks.layers import (
  Conv,
  Fourier,
  GroupNorm,
  Linear,
  check_dropout,
  condition_rows,
  dropout,
  label_rows,
  pnorm,
)
from cmjax.types import Cond, Time

# How a block takes in the embedding, and how many numbers per channel it needs for that.
MODULATIONS = {"additive": 1, "pnorm_scale_shift": 2}

EMBEDDINGS = ("fourier", "positional")

# Initial gains of the layers that end a residual branch, and of those that make q, k and v.
NEAR_ZERO, QKV_GAIN, SKIP_SCALE = 1e-5, math.sqrt(0.2), math.sqrt(0.5)


class BlockSpec(NamedTuple):
  """One block of the U-Net; `joins` is whether it reads a skip connection beside its input."""

  name: str
  cin: int
  cout: int
  resample: str = "keep"
  attention: bool = False
  joins: bool = False


def encoder_specs(resolutions, widths, num_blocks, attn_resolutions) -> list[BlockSpec]:
  """The blocks of the encoder in order, after the first convolution."""
  specs = []
  c = widths[0]
  for level, (res, width) in enumerate(zip(resolutions, widths[1:], strict=True)):
    if level:
      specs.append(BlockSpec(f"{res}x{res}_down", c, c, "down"))
    for i in range(num_blocks):
      specs.append(BlockSpec(f"{res}x{res}_block{i}", c, width, attention=res in attn_resolutions))
      c = width
  return specs


def decoder_specs(resolutions, widths, num_blocks, attn_resolutions) -> list[BlockSpec]:
  """The blocks of the decoder in order, from the lowest resolution up.

  The two blocks at the bottom have attention in the first whatever the resolution; elsewhere only
  the last block of a level with attention has it.
  """
  skips = [widths[0]] + [s.cout for s in encoder_specs(resolutions, widths, num_blocks, ())]
  specs = []
  c = widths[-1]
  for level, (res, width) in reversed(list(enumerate(zip(resolutions, widths[1:], strict=True)))):
    if level == len(resolutions) - 1:
      specs.append(BlockSpec(f"{res}x{res}_in0", c, c, attention=True))
      specs.append(BlockSpec(f"{res}x{res}_in1", c, c))
    else:
      specs.append(BlockSpec(f"{res}x{res}_up", c, c, "up"))
    for i in range(num_blocks + 1):
      attention = i == num_blocks and res in attn_resolutions
      cin = c + skips.pop()
      specs.append(BlockSpec(f"{res}x{res}_block{i}", cin, width, "keep", attention, True))
      c = width
  return specs


class UNetBlock(nnx.Module):
  """norm0, SiLU, conv0, modulation with norm1, SiLU, dropout, conv1; skip; optional attention.

  With a = affine(e), h after conv0, and (s, b) the two halves of a along the channels:

  * "additive":          SiLU(norm1(h + a)), as EDM's DDPM++;
  * "pnorm_scale_shift": SiLU(norm1(h) pnorm(s) + pnorm(b)), as sCM: s, and not 1 + s.

  pnorm makes s and b of unit size whatever the size of a, so the initial values of `affine` choose
  directions only. They must not be 0, where the derivative of pnorm is 1 / sqrt(eps) = 1e4: the
  kernel is drawn from xavier_uniform, as all others are.
  """

  def __init__(
    self, spec: BlockSpec, embed: int, *, modulation: str, dropout: float, rngs: nnx.Rngs
  ):
    cin, cout = spec.cin, spec.cout
    self.modulation, self.dropout = modulation, dropout
    self.norm0 = GroupNorm(cin)
    self.conv0 = Conv(cin, cout, 3, resample=spec.resample, rngs=rngs)
    self.affine = Linear(embed, MODULATIONS[modulation] * cout, rngs=rngs)
    self.norm1 = GroupNorm(cout)
    self.conv1 = Conv(cout, cout, 3, gain=NEAR_ZERO, rngs=rngs)
    straight = cin == cout and spec.resample == "keep"
    self.skip = None if straight else Conv(cin, cout, 1, resample=spec.resample, rngs=rngs)
    self.attention = spec.attention
    if spec.attention:
      self.norm2 = GroupNorm(cout)
      self.qkv = Conv(cout, 3 * cout, 1, gain=QKV_GAIN, rngs=rngs)
      self.proj = Conv(cout, cout, 1, gain=NEAR_ZERO, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w cin"], e: Float[Array, "b e"], rngs: nnx.Rngs | None
  ) -> Float[Array, "b h2 w2 cout"]:
    """The block's output for x and the embedding e; dropout only with `rngs`."""
    h = self.conv0(jax.nn.silu(self.norm0(x)))
    h = dropout(jax.nn.silu(self._modulate(h, e)), self.dropout, rngs)
    x = x if self.skip is None else self.skip(x)
    x = (x + self.conv1(h)) * SKIP_SCALE
    if self.attention:
      y = attend(split_heads(self.qkv(self.norm2(x)), num_heads=1))
      x = (x + self.proj(y.reshape(x.shape))) * SKIP_SCALE
    return x

  def _modulate(self, h: Array, e: Array) -> Array:
    a = self.affine(e)[:, None, None, :]
    if self.modulation == "additive":
      return self.norm1(h + a.astype(h.dtype))
    scale, shift = (pnorm(half).astype(h.dtype) for half in jnp.split(a, 2, axis=-1))
    return self.norm1(h) * scale + shift


class DDPMpp(nnx.Module):
  """F(x, t) for images, by the DDPM++ U-Net. The defaults are EDM's for CIFAR-10.

  F is exactly 0 at the start. Reads cond["label"] [b] where `num_classes` is not 0 (-1 means no
  condition; a label beyond the classes counts as -1) and cond["augment"] [b, augment_dim] where it
  is there: the parameters of an augmentation, which the network is told so that they do not leak
  into samples. Reads cond["guidance"] and cond["segment"] [b] where it was built with them; their
  layers start at 0, so that a student starts as its teacher (see `networks.grow`).

  Args:
    resolution: side of the images; divisible by 2 as often as there are levels below the first.
    in_channels: channels of the images.
    channels: base width, and width of the embedding of t; even and a multiple of 4.
    channel_mult: width of each level as a multiple of `channels`, highest resolution first.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    attn_resolutions: resolutions whose blocks have self-attention. One block at the lowest
      resolution has it in any case.
    dropout: rate, in each block.
    dropout_resolution: the largest side of images at which there is dropout; None: everywhere.
    num_classes: 0 for a network without labels.
    augment_dim: 0 for a network that is never told of augmentations.
    embed_mult: width of the two layers after the embedding, as a multiple of `channels`.
    modulation: "pnorm_scale_shift" (sCM) or "additive" (EDM); see `UNetBlock`.
    embedding: of the time, "positional" (DDPM++) or "fourier" (NCSN++, CM, iCT).
    fourier_scale: standard deviation of the Fourier frequencies: 16 in EDM and CM, 0.02 in iCT
      (arXiv 2310.14189). Used by embedding="fourier" only.
    guidance: whether the network is told the scale of its guidance (sCM).
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    rngs: where the initial values come from.

  Raises:
    ValueError: for a shape that is not a U-Net's, an attention resolution that never occurs, an
      unknown modulation or embedding, a scale of the frequencies that is not positive, or a dropout
      rate outside [0, 1); while tracing, for inputs of another
      shape, or a condition that is missing or not expected.
  """

  float32_paths = (r"^map_", r"/affine/")

  def __init__(
    self,
    resolution: int = 32,
    in_channels: int = 3,
    channels: int = 128,
    channel_mult: tuple[int, ...] = (2, 2, 2),
    num_blocks: int = 4,
    attn_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.13,
    dropout_resolution: int | None = None,
    num_classes: int = 0,
    augment_dim: int = 9,
    embed_mult: int = 4,
    modulation: str = "pnorm_scale_shift",
    embedding: str = "positional",
    fourier_scale: float = 16.0,
    guidance: bool = False,
    segment: bool = False,
    *,
    rngs: nnx.Rngs,
  ):
    resolutions = _resolutions(resolution, len(channel_mult))
    _check_options(resolutions, attn_resolutions, modulation, embedding)
    check_dropout(dropout)
    self.image_shape = (resolution, resolution, in_channels)
    self.channels, self.num_classes, self.augment_dim = channels, num_classes, augment_dim
    embed = embed_mult * channels
    if num_classes:
      self.map_label = Linear(num_classes, channels, rngs=rngs)
    if augment_dim:
      self.map_augment = Linear(augment_dim, channels, use_bias=False, rngs=rngs)
    self.map_layer0 = Linear(channels, embed, rngs=rngs)
    self.map_layer1 = Linear(embed, embed, rngs=rngs)

    widths = (channels, *(channels * m for m in channel_mult))
    plan = (resolutions, widths, num_blocks, tuple(attn_resolutions))

    def block(spec):
      res = int(spec.name.partition("x")[0])
      rate = dropout if dropout_resolution is None or res <= dropout_resolution else 0.0
      return UNetBlock(spec, embed, modulation=modulation, dropout=rate, rngs=rngs)

    self.first = f"{resolution}x{resolution}_conv"
    self.enc_specs, self.dec_specs = tuple(encoder_specs(*plan)), tuple(decoder_specs(*plan))
    self.enc: Any = nnx.Dict({s.name: block(s) for s in self.enc_specs})
    self.enc[self.first] = Conv(in_channels, channels, 3, rngs=rngs)
    self.dec: Any = nnx.Dict({s.name: block(s) for s in self.dec_specs})
    self.last = f"{resolution}x{resolution}_aux"
    self.dec[f"{self.last}_norm"] = GroupNorm(widths[1])
    self.dec[f"{self.last}_conv"] = Conv(widths[1], in_channels, 3, gain=0.0, rngs=rngs)

    # Last, so that all other initial weights are those of a network without them.
    self.embedding, self.guidance, self.segment = embedding, guidance, segment
    if embedding == "fourier":
      self.map_noise = Fourier(channels, fourier_scale, rngs=rngs)
    if guidance:
      self.map_guidance = Linear(channels, channels, gain=0.0, rngs=rngs)
    if segment:
      self.map_segment = Linear(channels, channels, gain=0.0, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w c"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b h w c"]:
    """F for x [b, resolution, resolution, in_channels] and the times [b] that are embedded.

    Dropout only with `rngs`.
    """
    if x.shape != (*t.shape, *self.image_shape):
      wanted = ", ".join(map(str, self.image_shape))
      raise ValueError(f"The network is for x [b, {wanted}], t [b]; got x {x.shape}, t {t.shape}.")
    e = self._embed(t, cond)
    x = self.enc[self.first](x)
    skips = [x]
    for spec in self.enc_specs:
      x = self.enc[spec.name](x, e, rngs)
      skips.append(x)
    for spec in self.dec_specs:
      if spec.joins:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self.dec[spec.name](x, e, rngs)
    return self.dec[f"{self.last}_conv"](jax.nn.silu(self.dec[f"{self.last}_norm"](x)))

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees."""
    fourier = self.embedding == "fourier"
    e = self.map_noise(t) if fourier else embeddings.positional(t, self.channels)
    cos, sin = jnp.split(e, 2, axis=-1)
    e = jnp.concatenate([sin, cos], axis=-1)  # EDM's order, for the sake of its checkpoints
    if self.num_classes:
      e = e + self.map_label(label_rows(cond, self.num_classes))
    if "augment" in cond:
      if cond["augment"].shape != (*t.shape, self.augment_dim):
        raise ValueError(
          f"cond['augment'] has the shape {cond['augment'].shape}, but the network was built with "
          f"augment_dim={self.augment_dim}: leave it out, or build with augment_dim to match."
        )
      e = e + self.map_augment(cond["augment"].astype(e.dtype))
    if self.guidance:
      e = e + self.map_guidance(condition_rows(cond, "guidance", t, self.channels))
    if self.segment:
      e = e + self.map_segment(condition_rows(cond, "segment", t, self.channels))
    return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(e))))


def _resolutions(resolution: int, num_levels: int) -> tuple[int, ...]:
  """The side of the images at each level, halved from one to the next."""
  if num_levels == 0:
    raise ValueError("channel_mult is empty: give one multiple per level, e.g. (2, 2, 2).")
  step = 2 ** (num_levels - 1)
  if resolution < step or resolution % step:
    raise ValueError(
      f"resolution={resolution} cannot be halved {num_levels - 1} times, as the {num_levels} "
      f"levels of channel_mult need. Nearest: {step * max(1, round(resolution / step))}; or give "
      "channel_mult fewer levels."
    )
  return tuple(resolution >> level for level in range(num_levels))


def _check_options(resolutions, attn_resolutions, modulation, embedding) -> None:
  missing = sorted(set(attn_resolutions) - set(resolutions))
  if missing:
    raise ValueError(
      f"attn_resolutions has {missing}, which do not occur. The resolutions of this network are "
      f"{list(resolutions)}."
    )
  if modulation not in MODULATIONS:
    raise ValueError(
      f"Unknown modulation {modulation!r}. Choose from: {', '.join(sorted(MODULATIONS))}."
    )
  if embedding not in EMBEDDINGS:
    raise ValueError(f"Unknown embedding {embedding!r}. Choose from: {', '.join(EMBEDDINGS)}.")
