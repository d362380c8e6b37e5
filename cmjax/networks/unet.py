"""What the U-Nets of Karras et al. 2022 have in common: their plan, their block, their checks.

`ddpmpp.DDPMpp` and `adm.ADM` walk down and up the same way and are built of the same block; a
`Style` says in what their blocks differ.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax import embeddings
from cmjax.networks.attention import attend, check_implementation, split_heads
from cmjax.networks.layers import (
  BOX,
  Conv,
  Fourier,
  GroupNorm,
  Linear,
  Module,
  check_dropout,
  check_fir,
  condition_rows,
  dropout,
  modulate,
  resample,
)
from cmjax.types import Cond, Time

# How a block takes in the embedding, and how many numbers per channel it needs for that.
MODULATIONS = {"additive": 1, "scale_shift": 2, "pnorm_scale": 1, "pnorm_scale_shift": 2}

EMBEDDINGS = ("fourier", "positional")
QK_NORMS = ("none", "rms")


class BlockSpec(NamedTuple):
  """One block of the U-Net; `joins` is whether it reads a skip connection beside its input."""

  name: str
  cin: int
  cout: int
  resample: str = "keep"
  attention: bool = False
  joins: bool = False

  @property
  def resolution(self) -> int:
    """Side of the images that it gives."""
    return int(self.name.partition("x")[0])

  def dropout(self, rate: float, largest: int | None) -> float:
    """`rate`, or 0 where the images are larger than `largest`; None: they never are."""
    return rate if largest is None or self.resolution <= largest else 0.0


class Style(NamedTuple):
  """What all blocks of a U-Net share, and in what two U-Nets may differ.

  Attributes:
    modulation: see `UNetBlock`.
    skip_scale: factor on a sum of straight path and residual branch.
    eps: of the group norms.
    fir: taps of the filter that changes the resolution.
    resample_proj: whether the straight path of a block that changes the resolution is convolved
      even where the channels stay the same.
    channels_per_head: of the attention; None: one head.
    qk_norm: "rms" divides q and k by their root mean square over the channels of a head.
    attention: how it is computed, an implementation of `attention.attention`.
    init: of all layers, a key of `layers.INITS`.
    gain: factor on all initial values but the next two.
    qkv_gain: the same of the layers that make q, k and v.
    last_gain: the same of the layers that end a residual branch.
  """

  modulation: str
  skip_scale: float
  eps: float
  fir: tuple[int, ...] = BOX
  resample_proj: bool = True
  channels_per_head: int | None = None
  qk_norm: str = "none"
  attention: str = "auto"
  init: str = "xavier"
  gain: float = 1.0
  qkv_gain: float = 1.0
  last_gain: float = 0.0


def encoder_specs(resolutions, widths, num_blocks, attn_resolutions) -> list[BlockSpec]:
  """The blocks of the encoder in order, after the first convolution (which gives widths[0])."""
  specs = []
  c = widths[0]
  for level, (res, width) in enumerate(zip(resolutions, widths[1:], strict=True)):
    if level:
      specs.append(BlockSpec(f"{res}x{res}_down", c, c, "down"))
    for i in range(num_blocks):
      specs.append(BlockSpec(f"{res}x{res}_block{i}", c, width, attention=res in attn_resolutions))
      c = width
  return specs


def decoder_specs(
  resolutions, widths, num_blocks, attn_resolutions, *, attend_in_all: bool = False
) -> list[BlockSpec]:
  """The blocks of the decoder in order, from the lowest resolution up.

  The two blocks at the bottom have attention in the first whatever the resolution; elsewhere the
  last block of a level with attention has it, or with `attend_in_all` each of them.
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
      attention = (attend_in_all or i == num_blocks) and res in attn_resolutions
      cin = c + skips.pop()
      specs.append(BlockSpec(f"{res}x{res}_block{i}", cin, width, "keep", attention, True))
      c = width
  return specs


class UNetBlock(Module):
  """norm0, SiLU, conv0, modulation with norm1, SiLU, dropout, conv1; skip; optional attention.

  With a = affine(e), h after conv0, and (s, b) the two halves of a along the channels:

  * "additive":          SiLU(norm1(h + a)), as EDM's DDPM++;
  * "scale_shift":       SiLU(norm1(h) (1 + s) + b), as ADM;
  * "pnorm_scale":       SiLU(norm1(h) pnorm(a)), sCM's double norm without its shift: as many
    parameters as "additive";
  * "pnorm_scale_shift": SiLU(norm1(h) pnorm(s) + pnorm(b)), as sCM: s, and not 1 + s.

  pnorm makes s and b of unit size whatever the size of a, so the initial values of `affine` choose
  directions only. They must not be 0, where the derivative of pnorm is 1 / sqrt(eps) = 1e4: they
  are drawn as all others are.
  """

  def __init__(self, spec: BlockSpec, embed: int, style: Style, *, dropout: float, rngs: nnx.Rngs):
    cin, cout, up_or_down = spec.cin, spec.cout, spec.resample
    conv = functools.partial(Conv, init=style.init, rngs=rngs)
    resampling = functools.partial(conv, resample=up_or_down, fir=style.fir, gain=style.gain)
    self.style, self.resample, self.dropout = style, up_or_down, dropout
    self.norm0 = GroupNorm(cin, eps=style.eps)
    self.conv0 = resampling(cin, cout, 3)
    width = MODULATIONS[style.modulation] * cout
    self.affine = Linear(embed, width, init=style.init, gain=style.gain, rngs=rngs)
    self.norm1 = GroupNorm(cout, eps=style.eps)
    self.conv1 = conv(cout, cout, 3, gain=style.last_gain)
    straight = cin == cout and not (style.resample_proj and up_or_down != "keep")
    self.skip = None if straight else resampling(cin, cout, 1)
    self.num_heads = num_heads(spec, style.channels_per_head) if spec.attention else 0
    if self.num_heads:
      self.norm2 = GroupNorm(cout, eps=style.eps)
      self.qkv = conv(cout, 3 * cout, 1, gain=style.qkv_gain)
      self.proj = conv(cout, cout, 1, gain=style.last_gain)

  def __call__(
    self, x: Float[Array, "b h w cin"], e: Float[Array, "b e"], key: Array | None
  ) -> Float[Array, "b h2 w2 cout"]:
    """The block's output for x and the embedding e; dropout only with a key."""
    h = self.conv0(jax.nn.silu(self.norm0(x)))
    h = dropout(jax.nn.silu(self._modulate(h, e)), self.dropout, key)
    x = resample(x, self.resample, self.style.fir) if self.skip is None else self.skip(x)
    x = (x + self.conv1(h)) * self.style.skip_scale
    if self.num_heads:
      qkv = split_heads(self.qkv(self.norm2(x)), self.num_heads)
      qkv = rms_norm_qk(qkv) if self.style.qk_norm == "rms" else qkv
      y = attend(qkv, self.style.attention)
      x = (x + self.proj(y.reshape(x.shape))) * self.style.skip_scale
    return x

  def _modulate(self, h: Array, e: Array) -> Array:
    a = self.affine(e)[:, None, None, :]
    if self.style.modulation == "additive":
      return self.norm1(h + a.astype(h.dtype))
    bounded = self.style.modulation != "scale_shift"
    scale, *shift = jnp.split(a, MODULATIONS[self.style.modulation], axis=-1)
    return modulate(self.norm1(h), scale, shift[0] if shift else None, bounded=bounded)


def make_blocks(
  specs: Iterable[BlockSpec],
  embed: int,
  style: Style,
  *,
  dropout: float,
  dropout_resolution: int | None,
  rngs: nnx.Rngs,
) -> Any:
  """Name -> block, made in the order of the specs; see `BlockSpec.dropout` for the rates."""
  return nnx.Dict(
    {
      spec.name: UNetBlock(
        spec, embed, style, dropout=spec.dropout(dropout, dropout_resolution), rngs=rngs
      )
      for spec in specs
    }
  )


def rms_norm_qk(qkv: Float[Array, "b p n c 3"], *, eps: float = 1e-6) -> Float[Array, "b p n c 3"]:
  """q and k divided by sqrt(mean_c(.^2) + eps), in float32 at least; v as it is.

  No score is then larger than sqrt(c) in size, whatever the weights: the larger the network, the
  more that matters in a tangent (SANA-Sprint needs it at 1.6 B parameters). Nothing is learned
  here, so that a network has the same weights with and without it.
  """
  wide = qkv.astype(jnp.promote_types(qkv.dtype, jnp.float32))
  factor = jax.lax.rsqrt(jnp.square(wide[..., :2]).mean(-2, keepdims=True) + eps)
  factor = jnp.concatenate([factor, jnp.ones_like(factor[..., :1])], axis=-1)
  return (wide * factor).astype(qkv.dtype)


def make_conditions(net: Any, channels: int, fourier_scale: float, *, rngs: nnx.Rngs) -> None:
  """Gives a network the layers that its `embedding`, `guidance` and `segment` ask for.

  `map_noise` embeds the time with embedding="fourier"; `map_guidance` and `map_segment`, which
  `add_conditions` applies, start at 0. All are as wide as the embedding of the time.
  """
  if net.embedding == "fourier":
    net.map_noise = Fourier(channels, fourier_scale, rngs=rngs)
  if net.guidance:
    net.map_guidance = Linear(channels, channels, gain=0.0, rngs=rngs)
  if net.segment:
    net.map_segment = Linear(channels, channels, gain=0.0, rngs=rngs)


def embed_time(net: Any, t: Time, channels: int, **kwargs: float) -> Float[Array, "b n"]:
  """The embedding of t that the network's `embedding` names; `kwargs` are of the positional one."""
  if net.embedding == "fourier":
    return net.map_noise(t)
  return embeddings.positional(t, channels, **kwargs)


def add_conditions(net: Any, e: Float[Array, "b n"], cond: Cond, t: Time) -> Float[Array, "b n"]:
  """The embedding e of t, plus those of augmentation, guidance and segment.

  Reads `augment_dim`, `guidance` and `segment` of the network and its layers `map_augment`,
  `map_guidance` and `map_segment`.

  Raises:
    ValueError: while tracing, for a condition that is missing or of another shape.
  """
  if "augment" in cond:
    if cond["augment"].shape != (*t.shape, net.augment_dim):
      raise ValueError(
        f"cond['augment'] has the shape {cond['augment'].shape}, but the network was built with "
        f"augment_dim={net.augment_dim}: leave it out, or build with augment_dim to match."
      )
    e = e + net.map_augment(cond["augment"].astype(e.dtype))
  if net.guidance:
    e = e + net.map_guidance(condition_rows(cond, "guidance", t, e.shape[-1]))
  if net.segment:
    e = e + net.map_segment(condition_rows(cond, "segment", t, e.shape[-1]))
  return e


def check_input(x: Array, t: Time, image_shape: tuple[int, ...]) -> None:
  """Raises ValueError if x is not [b, *image_shape] or t not [b]."""
  if x.shape != (*t.shape, *image_shape):
    wanted = ", ".join(map(str, image_shape))
    raise ValueError(f"The network is for x [b, {wanted}], t [b]; got x {x.shape}, t {t.shape}.")


def level_resolutions(resolution: int, num_levels: int) -> tuple[int, ...]:
  """The side of the images at each level, halved from one to the next.

  Raises:
    ValueError: for a side that cannot be halved so often.
  """
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


def check_options(resolutions, attn_resolutions, embedding: str, style: Style, rate: float) -> None:
  """Raises ValueError for options that no U-Net can have; `rate` is that of the dropout."""
  check_attn_resolutions(resolutions, attn_resolutions)
  check_choice("modulation", style.modulation, sorted(MODULATIONS))
  check_choice("embedding", embedding, EMBEDDINGS)
  check_choice("qk_norm", style.qk_norm, QK_NORMS)
  check_implementation(style.attention)
  check_fir(style.fir)
  check_dropout(rate)


def check_attn_resolutions(resolutions, attn_resolutions) -> None:
  """Raises ValueError for attention at a resolution that does not occur."""
  missing = sorted(set(attn_resolutions) - set(resolutions))
  if missing:
    raise ValueError(
      f"attn_resolutions has {missing}, which do not occur. The resolutions of this network are "
      f"{list(resolutions)}."
    )


def check_choice(what: str, got: str, choices) -> None:
  """Raises ValueError for an option that is not one of `choices`."""
  if got not in choices:
    raise ValueError(f"Unknown {what} {got!r}. Choose from: {', '.join(choices)}.")


def num_heads(spec: BlockSpec, channels_per_head: int | None) -> int:
  """How many heads the attention of a block has; None: one. ValueError if they do not divide."""
  if channels_per_head is None:
    return 1
  if channels_per_head < 1 or spec.cout % channels_per_head:
    raise ValueError(
      f"The attention of {spec.name} has {spec.cout} channels, which do not divide into heads of "
      f"channels_per_head={channels_per_head}. Give a divisor of {spec.cout}."
    )
  return spec.cout // channels_per_head
