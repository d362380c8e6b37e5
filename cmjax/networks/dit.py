"""DiT: a transformer on patches of an image or a latent (Peebles and Xie 2023, arXiv 2212.09748).

Its layers are theirs, from the paper and from diffusers' `DiTTransformer2DModel`: fixed sinusoidal
positions, adaptive normalisation whose gates start at 0, one table of labels with a row for "none".
As in `ddpmpp`, the time is embedded as it comes, not times 1000, and scale and shift can be sCM's
(arXiv 2410.11081, sec. 4.1). Each of the sizes of the paper is a row of `SIZES`.

Parameters of the blocks are `blocks/block0/affine/kernel` [m, n], ..., or with `scan` one array for
all blocks, `blocks/affine/kernel` [depth, m, n]; `stack` and `unstack` go from one to the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax.base.ranges import Positive, Share, Size, SizeOrNone
from cmjax.networks.attention import attend, check_implementation, split_heads
from cmjax.networks.layers import Linear, Module, check_dropout, dropout, label_rows, modulate
from cmjax.networks.run_blocks import run_block, scan_blocks
from cmjax.networks.unet import (
  EMBEDDINGS,
  QK_NORMS,
  add_conditions,
  check_choice,
  check_input,
  embed_time,
  make_conditions,
  rms_norm_qk,
)
from cmjax.types import Cond, Params, Time

# depth, width, num_heads
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
# How a norm takes in the embedding, and how many numbers per channel it needs for that.
MODULATIONS = {"scale_shift": 2, "pnorm_scale": 1, "pnorm_scale_shift": 2}
# Of the table of labels and the layers that map the time: a standard deviation.
SMALL = 0.02


class DiTBlock(Module):
  """x + gate proj(attention(modulated norm of x)), then the same with an MLP of two layers.

  With (b, s, gate) three of the six parts of affine(e), norm(x) becomes

  * "scale_shift":       norm(x) (1 + s) + b, as in DiT, where `affine` starts at 0;
  * "pnorm_scale_shift": norm(x) pnorm(s) + pnorm(b), as in sCM: bounded, whatever the size of s
    and b, which must not start at 0 (see `unet.UNetBlock`). The gates do;
  * "pnorm_scale":       norm(x) pnorm(s), of four parts (s, gate).

  Either way both branches start at exactly 0. Dropout is between the layers of the MLP.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    mlp_width: int,
    *,
    modulation: str,
    qk_norm: str,
    attention: str,
    dropout: float,
    rngs: nnx.Rngs,
  ):
    self.num_heads, self.qk_norm, self.attention = num_heads, qk_norm, attention
    self.modulation, self.dropout = modulation, dropout
    each = MODULATIONS[modulation] + 1
    self.affine = affine(width, 2 * each, modulation, gates=(each - 1, 2 * each - 1), rngs=rngs)
    self.qkv = Linear(width, 3 * width, rngs=rngs)
    self.proj = Linear(width, width, rngs=rngs)
    self.fc0 = Linear(width, mlp_width, rngs=rngs)
    self.fc1 = Linear(mlp_width, width, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b p n"], e: Float[Array, "b e"], key: Array | None
  ) -> Float[Array, "b p n"]:
    """The block's output for tokens x and the embedding e; dropout only with a key."""
    each = MODULATIONS[self.modulation] + 1
    parts = jnp.split(self.affine(e)[:, None, :], 2 * each, axis=-1)
    *first, gate0 = parts[:each]
    *second, gate1 = parts[each:]
    h = modulated_norm(x, first, self.modulation)
    x = x + gate0.astype(x.dtype) * self.proj(self._attend(h))
    h = modulated_norm(x, second, self.modulation)
    h = dropout(jax.nn.gelu(self.fc0(h), approximate=True), self.dropout, key)
    return x + gate1.astype(x.dtype) * self.fc1(h)

  def _attend(self, h: Array) -> Array:
    qkv = split_heads(self.qkv(h)[:, None], self.num_heads)
    return attend(rms_norm_qk(qkv) if self.qk_norm == "rms" else qkv, self.attention)


class DiTLast(Module):
  """The last layer: modulated norm, and a linear map that starts at 0."""

  def __init__(self, width: int, cout: int, *, modulation: str, rngs: nnx.Rngs):
    self.modulation = modulation
    self.affine = affine(width, MODULATIONS[modulation], modulation, rngs=rngs)
    self.linear = Linear(width, cout, gain=0.0, rngs=rngs)

  def __call__(self, x: Float[Array, "b p n"], e: Float[Array, "b e"]) -> Float[Array, "b p m"]:
    """Patches of F for the tokens x."""
    parts = jnp.split(self.affine(e)[:, None, :], MODULATIONS[self.modulation], axis=-1)
    return self.linear(modulated_norm(x, parts, self.modulation))


class DiT(Module):
  """F(x, t) for images or latents, by a transformer on patches. The defaults are DiT-B/2's.

  F is exactly 0 at the start. Reads cond["label"] [b] where `num_classes` is not 0 (-1 means no
  condition, and so does a label beyond the classes), and cond["guidance"] and cond["segment"] [b]
  where it was built with them; their layers start at 0, so that a student starts as its teacher
  (see `networks.grow`).

  Args:
    resolution: side of the images, a multiple of `patch`.
    in_channels: channels of the images: 3, or 4 for the latents of the SD-VAE.
    patch: side of a patch: 2, 4 or 8 in the paper.
    size: "S", "B", "L" or "XL"; None: `depth`, `width` and `num_heads` say it.
    depth: number of blocks.
    width: of a token, and of the embedding that the blocks see; a multiple of 4.
    num_heads: of the attention; a divisor of `width`.
    mlp_mult: width of the hidden layer of a block's MLP, as a multiple of `width`.
    embed_channels: width of the embedding of t and of the conditions.
    num_classes: 0 for a network without labels.
    dropout: rate, in each block.
    modulation: "scale_shift" (DiT), "pnorm_scale_shift" (sCM) or "pnorm_scale"; see `DiTBlock`.
    embedding: of the time, "positional" or "fourier".
    fourier_scale: standard deviation of the Fourier frequencies; used by embedding="fourier" only.
    qk_norm: "none" or "rms", of the attention; see `unet.rms_norm_qk`.
    attention: how it is computed, an implementation of `attention.attention`.
    learn_sigma: whether the last layer has the channels for a variance too, as in the published
      weights; F is the first half of them, and the rest is not used.
    remat: whether a gradient computes the inside of each block again instead of storing it: less
      memory, about a third more time.
    scan: whether the blocks are one `jax.lax.scan` over stacked parameters: a program of one block
      to compile, for the same initial weights, values and dropout masks.
    guidance: whether the network is told the scale of its guidance (sCM).
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    rngs: where the initial values come from.

  Raises:
    ValueError: for a resolution that patches do not fill, an unknown size, a size beside other
      dimensions or neither, a width that does not divide into heads or is no multiple of 4, an
      unknown modulation, embedding, qk_norm or attention, or a dropout rate outside [0, 1); while
      tracing, for inputs of another shape, or a condition that is missing or not expected.
  """

  float32_paths = (r"^map_", r"/affine/")

  def __init__(
    self,
    resolution: Size = 32,
    in_channels: Size = 4,
    patch: Size = 2,
    size: str | None = "B",
    depth: Size | None = None,
    width: Size | None = None,
    num_heads: Size | None = None,
    mlp_mult: Size = 4,
    embed_channels: Size = 256,
    num_classes: SizeOrNone = 0,
    dropout: Share = 0.0,
    modulation: str = "scale_shift",
    embedding: str = "positional",
    fourier_scale: Positive = 16.0,
    qk_norm: str = "none",
    attention: str = "auto",
    learn_sigma: bool = False,
    remat: bool = False,
    scan: bool = False,
    guidance: bool = False,
    segment: bool = False,
    *,
    rngs: nnx.Rngs,
  ):
    depth, width, num_heads = dimensions(size, depth, width, num_heads)
    check_patch(resolution, patch)
    check_choice("modulation", modulation, sorted(MODULATIONS))
    check_choice("embedding", embedding, EMBEDDINGS)
    check_choice("qk_norm", qk_norm, QK_NORMS)
    check_implementation(attention)
    check_dropout(dropout)
    self.image_shape = (resolution, resolution, in_channels)
    self.patch, self.width, self.depth = patch, width, depth
    self.num_classes, self.augment_dim, self.embed_channels = num_classes, 0, embed_channels
    self.remat, self.scan, self.has_dropout = remat, scan, dropout > 0
    self.tokens = Linear(patch**2 * in_channels, width, rngs=rngs)
    small: dict[str, Any] = dict(init="normal", gain=SMALL, rngs=rngs)
    self.map_layer0 = Linear(embed_channels, width, **small)
    self.map_layer1 = Linear(width, width, **small)
    if num_classes:
      self.map_label = Linear(num_classes + 1, width, use_bias=False, **small)

    options: dict[str, Any] = dict(
      modulation=modulation, qk_norm=qk_norm, attention=attention, dropout=dropout, rngs=rngs
    )
    blocks = [DiTBlock(width, num_heads, mlp_mult * width, **options) for _ in range(depth)]
    by_name = {f"block{i}": block for i, block in enumerate(blocks)}
    self.blocks: Any = stacked(blocks) if scan else nnx.Dict(by_name)
    out_channels = in_channels * (2 if learn_sigma else 1)
    self.last = DiTLast(width, patch**2 * out_channels, modulation=modulation, rngs=rngs)

    # Last, so that all other initial weights are those of a network without them.
    self.embedding, self.guidance, self.segment = embedding, guidance, segment
    make_conditions(self, embed_channels, fourier_scale, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b h w c"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b h w c"]:
    """F for x [b, resolution, resolution, in_channels] and the times [b] that are embedded.

    Dropout only with `rngs`.
    """
    check_input(x, t, self.image_shape)
    e = self._embed(t, cond)
    side = self.image_shape[0] // self.patch
    h = self.tokens(patches(x, self.patch))
    h = h + jnp.asarray(positions(side, self.width), h.dtype)[None]
    keys = None
    if rngs is not None and self.has_dropout:
      keys = jnp.stack([rngs.dropout() for _ in range(self.depth)])
    h = self._run_blocks(h, e, keys)
    F = image(self.last(h, e), self.patch)
    return F[..., : self.image_shape[-1]]

  def _run_blocks(self, h: Array, e: Array, keys: Array | None) -> Array:
    """All blocks in turn; `keys` [depth] are those of their dropout."""
    if self.scan:
      return scan_blocks(*nnx.split(self.blocks), h, e, keys, remat=self.remat)[0]
    for i in range(self.depth):
      key = None if keys is None else keys[i]
      h = run_block(self.blocks[f"block{i}"], h, e, key, remat=self.remat)
    return h

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees."""
    e = embed_time(self, t, self.embed_channels)
    e = add_conditions(self, e, cond, t)
    e = self.map_layer1(jax.nn.silu(self.map_layer0(e)))
    if self.num_classes:
      rows = label_rows(cond, self.num_classes, scaled=False)
      none = 1 - rows.sum(-1, keepdims=True)
      e = e + self.map_label(jnp.concatenate([rows, none], axis=-1))
    return jax.nn.silu(e)


def stacked(blocks: Sequence[DiTBlock]) -> DiTBlock:
  """Blocks that are equal but for their parameters as one, whose parameters [depth, ...] are all.

  It is what `scan_blocks` runs.
  """
  states = [nnx.state(block, nnx.Param) for block in blocks]
  arrays = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
  return nnx.merge(nnx.graphdef(blocks[0]), arrays)


def check_patch(resolution: int, patch: int) -> None:
  """Raises ValueError if patches do not fill an image."""
  if patch < 1 or resolution < patch or resolution % patch:
    raise ValueError(
      f"resolution={resolution} is not filled by patches of side patch={patch}. Nearest: "
      f"{max(1, round(resolution / max(1, patch))) * max(1, patch)}."
    )


def affine(
  width: int, parts: int, modulation: str, *, gates: tuple[int, ...] = (), rngs: nnx.Rngs
) -> Linear:
  """The layer that makes shifts, scales and gates of the embedding, at its start.

  With "scale_shift" it is 0; with the double norms only its parts `gates` are.
  """
  bounded = modulation != "scale_shift"
  layer = Linear(width, parts * width, gain=1.0 if bounded else 0.0, rngs=rngs)
  if bounded and gates:
    kernel = layer.kernel[...].reshape(width, parts, width)
    layer.kernel[...] = kernel.at[:, list(gates)].set(0.0).reshape(width, parts * width)
  return layer


def modulated_norm(x: Array, parts: Sequence[Array], modulation: str) -> Array:
  """`layer_norm` of x with `parts`, (shift, scale) or (scale,): DiT has the shift first."""
  *shift, scale = parts
  bounded = modulation != "scale_shift"
  return modulate(layer_norm(x), scale, shift[0] if shift else None, bounded=bounded)


def layer_norm(x: Float[Array, "*b n"], *, eps: float = 1e-6) -> Float[Array, "*b n"]:
  """x less its mean over the last axis, over its standard deviation; in float32 at least."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  wide = wide - wide.mean(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def patches(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b p m"]:
  """Squares of `side` x `side` pixels, row by row, each as one vector: its rows, pixels, channels.

  >>> import jax.numpy as jnp
  >>> patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
  [2.0, 3.0, 6.0, 7.0]
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
  return x.reshape(b, (h // side) * (w // side), side * side * c)


def image(p: Float[Array, "b p m"], side: int) -> Float[Array, "b h w c"]:
  """The square image of its patches: the inverse of `patches`."""
  b, count, m = p.shape
  n = round(count**0.5)
  p = p.reshape(b, n, n, side, side, m // side**2).swapaxes(2, 3)
  return p.reshape(b, n * side, n * side, m // side**2)


def positions(side: int, width: int) -> Float[np.ndarray, "p n"]:
  """Sines, then cosines of a token's column, and then the same of its row.

  The frequencies are 10000^(-i / (width / 4)), of positions counted from 0.
  """
  freqs = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
  angles = np.arange(side)[:, None] * freqs
  table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
  grid = (side, side, width // 2)
  columns, rows = np.broadcast_to(table[None], grid), np.broadcast_to(table[:, None], grid)
  return np.concatenate([columns, rows], axis=-1).reshape(side**2, width)


def dimensions(
  size: str | None, depth: int | None, width: int | None, num_heads: int | None
) -> tuple[int, int, int]:
  """Depth, width and number of heads, by the name of a size or one by one.

  Raises:
    ValueError: for an unknown size, both or neither, or a width that does not fit.
  """
  given = {"depth": depth, "width": width, "num_heads": num_heads}
  if size is not None:
    check_choice("size", size, SIZES)
    if any(value is not None for value in given.values()):
      raise ValueError(f"size={size!r} says what {given} say too: give size=None with them.")
    return SIZES[size]
  if depth is None or width is None or num_heads is None:
    raise ValueError(f"size=None needs all of depth, width and num_heads; got {given}.")
  if min(depth, width, num_heads) < 1 or width % num_heads or width % 4:
    raise ValueError(
      f"{given} do not fit: all are at least 1, and width is a multiple of num_heads and of 4, for "
      "positions in two directions."
    )
  return depth, width, num_heads


def stack(params: Mapping[str, Any]) -> Params:
  """The parameters of a DiT with `scan` from those of the same without: blocks along axis 0."""
  blocks = params["blocks"]
  in_order = [blocks[f"block{i}"] for i in range(len(blocks))]
  return {**params, "blocks": jax.tree.map(lambda *arrays: jnp.stack(arrays), *in_order)}


def unstack(params: Mapping[str, Any]) -> Params:
  """The inverse of `stack`."""
  depth = len(jax.tree.leaves(params["blocks"])[0])
  block = lambda i: jax.tree.map(lambda a: a[i], params["blocks"])
  return {**params, "blocks": {f"block{i}": block(i) for i in range(depth)}}
