"""The autoencoder of Stable Diffusion (Rombach et al. 2022): images to latents, and back.

The modules are diffusers' `AutoencoderKL`: same layers, and names that differ by slashes for dots
(`encoder/down_blocks/0/resnets/0/conv1/kernel`). The defaults are the architecture of
`stabilityai/sd-vae-ft-mse`, whose weights are not ours to ship: `convert.autoencoder.read` takes
its file `diffusion_pytorch_model.safetensors`, by a path of your own. What is fed to the encoder
and how latents are scaled is `cmjax.latents`' matter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax.networks.attention import attend, check_implementation, split_heads
from cmjax.networks.layers import Conv, GroupNorm, Linear, Module, along_last, kaiming_uniform
from cmjax.types import Params

# Of the log-variance, as in the paper's code: part of what the encoder is, not a repair.
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


class Autoencoder(NamedTuple):
  """An autoencoder as pure functions: all that others see of it.

  Attributes:
    init: key -> params, float32.
    encode: params, images [b, h, w, c] in the range that the weights were trained for -> mean and
      std [b, h / f, w / f, z] of the latents, with f = 2^(levels - 1).
    decode: params, latents [b, h / f, w / f, z] -> images.
  """

  init: Callable[[Array], Params]
  encode: Callable[[Params, Array], tuple[Array, Array]]
  decode: Callable[[Params, Array], Array]


def autoencoder_kl(*, dtype: Any = jnp.float32, **kwargs: Any) -> Autoencoder:
  """The `AutoencoderKL` of these arguments, computing in `dtype`, its outputs in float32.

  float16 overflows in this decoder; bfloat16 costs about a grey level.

  Raises:
    ValueError: for arguments that do not fit; from `encode` and `decode`, while tracing, for images
      and latents that do not.

  >>> import jax
  >>> vae = autoencoder_kl(widths=(8, 16), num_blocks=1)
  >>> params = jax.jit(vae.init)(jax.random.key(0))
  >>> mean, std = vae.encode(params, jax.numpy.zeros((2, 16, 16, 3)))
  >>> mean.shape, vae.decode(params, mean).shape
  ((2, 8, 8, 4), (2, 16, 16, 3))
  """
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype={dtype.name} is not floating-point. Try float32 or bfloat16.")
  make = lambda rngs: AutoencoderKL(**kwargs, rngs=rngs)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)

  def init(key):
    return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)), nnx.Param)[1])

  def method(name):
    def run(params, x):
      x = jnp.asarray(x)
      body = x.dtype if x.dtype == jnp.float64 else dtype
      module = nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(a, body), params))
      out = getattr(module, name)(x.astype(body))
      return jax.tree.map(lambda a: a.astype(jnp.promote_types(body, jnp.float32)), out)

    return run

  return Autoencoder(init, method("encode"), method("decode"))


class AutoencoderKL(Module):
  """Encoder and decoder, and the 1 x 1 convolutions between them and the latents.

  Args:
    widths: channels of each level, highest resolution first: multiples of 4, and of 32 from 128 on.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    in_channels: channels of the images.
    latent_channels: z.
    attention: how it is computed, an implementation of `attention.attention`.
    rngs: where the initial values come from.

  Raises:
    ValueError: for no widths, or such that do not divide into groups; an unknown attention.
  """

  def __init__(
    self,
    widths: tuple[int, ...] = (128, 256, 512, 512),
    num_blocks: int = 2,
    in_channels: int = 3,
    latent_channels: int = 4,
    attention: str = "auto",
    *,
    rngs: nnx.Rngs,
  ):
    if not widths or num_blocks < 1:
      raise ValueError(
        f"widths={widths} and num_blocks={num_blocks}: give one width per level, and at least one "
        "block. The SD-VAE has (128, 256, 512, 512) and 2."
      )
    check_implementation(attention)
    self.in_channels, self.latent_channels = in_channels, latent_channels
    self.factor = 2 ** (len(widths) - 1)
    options: dict[str, Any] = dict(attention=attention, rngs=rngs)
    self.encoder = Encoder(in_channels, widths, num_blocks, 2 * latent_channels, **options)
    self.decoder = Decoder(latent_channels, widths, num_blocks, in_channels, **options)
    self.quant_conv = Conv(2 * latent_channels, 2 * latent_channels, 1, rngs=rngs)
    self.post_quant_conv = Conv(latent_channels, latent_channels, 1, rngs=rngs)

  def encode(
    self, images: Float[Array, "b h w c"]
  ) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
    """Mean and standard deviation of the latents of images."""
    fits = images.shape[-1] == self.in_channels
    if not fits or any(side % self.factor for side in images.shape[1:3]):
      raise ValueError(
        f"This encoder is for images [b, h, w, {self.in_channels}] with sides that "
        f"{self.factor} divides; got {images.shape}."
      )
    moments = self.quant_conv(self.encoder(images))
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.exp(jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX) / 2)

  def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
    """The images of latents."""
    if latents.shape[-1] != self.latent_channels:
      raise ValueError(
        f"This decoder is for latents [b, h, w, {self.latent_channels}]; got {latents.shape}."
      )
    return self.decoder(self.post_quant_conv(latents))


class Encoder(Module):
  """A convolution, levels of residual blocks from high to low resolution, the middle, the end."""

  def __init__(
    self,
    cin: int,
    widths: tuple[int, ...],
    num_blocks: int,
    cout: int,
    *,
    attention: str,
    rngs: nnx.Rngs,
  ):
    self.conv_in = Conv(cin, widths[0], 3, rngs=rngs)
    levels, c = {}, widths[0]
    for i, width in enumerate(widths):
      shrink = i < len(widths) - 1
      levels[str(i)] = level(c, width, num_blocks, "downsamplers" if shrink else None, rngs=rngs)
      c = width
    self.down_blocks: Any = nnx.Dict(levels)
    self.mid_block: Any = middle(c, attention=attention, rngs=rngs)
    self.conv_norm_out = GroupNorm(c)
    self.conv_out = Conv(c, cout, 3, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b h2 w2 cout"]:
    """Both moments of the latents side by side, as `quant_conv` takes them."""
    x = self.conv_in(x)
    for i in range(len(self.down_blocks)):
      x = run_level(self.down_blocks[str(i)], x)
    x = run_middle(self.mid_block, x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(Module):
  """A convolution, the middle, levels of residual blocks from low to high resolution, the end."""

  def __init__(
    self,
    cin: int,
    widths: tuple[int, ...],
    num_blocks: int,
    cout: int,
    *,
    attention: str,
    rngs: nnx.Rngs,
  ):
    c = widths[-1]
    self.conv_in = Conv(cin, c, 3, rngs=rngs)
    self.mid_block: Any = middle(c, attention=attention, rngs=rngs)
    levels = {}
    for i, width in enumerate(reversed(widths)):
      grow = i < len(widths) - 1
      levels[str(i)] = level(c, width, num_blocks + 1, "upsamplers" if grow else None, rngs=rngs)
      c = width
    self.up_blocks: Any = nnx.Dict(levels)
    self.conv_norm_out = GroupNorm(c)
    self.conv_out = Conv(c, cout, 3, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b h2 w2 cout"]:
    """Images, from what `post_quant_conv` gives."""
    x = run_middle(self.mid_block, self.conv_in(x))
    for i in range(len(self.up_blocks)):
      x = run_level(self.up_blocks[str(i)], x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def level(cin: int, cout: int, num_blocks: int, resample: str | None, *, rngs: nnx.Rngs) -> Any:
  """Residual blocks at one resolution, and the convolution that leads to the next."""
  blocks = {str(i): ResnetBlock(cout if i else cin, cout, rngs=rngs) for i in range(num_blocks)}
  parts: dict[str, Any] = {"resnets": nnx.Dict(blocks)}
  if resample == "downsamplers":
    parts[resample] = nnx.Dict({"0": nnx.Dict({"conv": StridedConv(cout, rngs=rngs)})})
  elif resample == "upsamplers":
    conv = Conv(cout, cout, 3, resample="up", rngs=rngs)
    parts[resample] = nnx.Dict({"0": nnx.Dict({"conv": conv})})
  return nnx.Dict(parts)


def run_level(parts: Any, x: Float[Array, "b h w cin"]) -> Float[Array, "b h2 w2 cout"]:
  """What `level` built, applied to x."""
  for i in range(len(parts["resnets"])):
    x = parts["resnets"][str(i)](x)
  for name in ("downsamplers", "upsamplers"):
    if name in parts:
      x = parts[name]["0"]["conv"](x)
  return x


def middle(channels: int, *, attention: str, rngs: nnx.Rngs) -> Any:
  """Attention between two residual blocks, at the lowest resolution."""
  blocks = {str(i): ResnetBlock(channels, channels, rngs=rngs) for i in range(2)}
  attentions = {"0": AttentionBlock(channels, attention=attention, rngs=rngs)}
  return nnx.Dict({"resnets": nnx.Dict(blocks), "attentions": nnx.Dict(attentions)})


def run_middle(parts: Any, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """What `middle` built, applied to x."""
  return parts["resnets"]["1"](parts["attentions"]["0"](parts["resnets"]["0"](x)))


class ResnetBlock(Module):
  """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), x convolved where the channels change."""

  def __init__(self, cin: int, cout: int, *, rngs: nnx.Rngs):
    self.norm1, self.norm2 = GroupNorm(cin), GroupNorm(cout)
    self.conv1, self.conv2 = Conv(cin, cout, 3, rngs=rngs), Conv(cout, cout, 3, rngs=rngs)
    self.conv_shortcut = None if cin == cout else Conv(cin, cout, 1, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b h w cout"]:
    """The block's output."""
    h = self.conv1(jax.nn.silu(self.norm1(x)))
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(Module):
  """x + to_out(attention of one head over all pixels of norm(x))."""

  def __init__(self, channels: int, *, attention: str, rngs: nnx.Rngs):
    self.attention = attention
    self.group_norm = GroupNorm(channels)
    self.to_q, self.to_k, self.to_v = (Linear(channels, channels, rngs=rngs) for _ in range(3))
    self.to_out: Any = nnx.Dict({"0": Linear(channels, channels, rngs=rngs)})

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The block's output."""
    h = self.group_norm(x)
    qkv = jnp.stack([self.to_q(h), self.to_k(h), self.to_v(h)], axis=-1)
    y = attend(split_heads(qkv.reshape(*x.shape[:3], -1), 1), self.attention)
    return x + self.to_out["0"](y).reshape(x.shape)


class StridedConv(Module):
  """A 3 x 3 convolution at every second pixel, zeros below and to the right of x only."""

  def __init__(self, channels: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(kaiming_uniform(rngs.params(), (3, 3, channels, channels)))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """x at half the resolution."""
    axes, pads = ("NHWC", "HWIO", "NHWC"), [(0, 1), (0, 1)]
    y = jax.lax.conv_general_dilated(x, self.kernel[...], (2, 2), pads, dimension_numbers=axes)
    return y + along_last(self.bias[...], y)
