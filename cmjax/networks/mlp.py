"""A residual network for points in the plane, or any data without pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax import embeddings
from cmjax.base.ranges import Positive, Share, Size, SizeOrNone
from cmjax.networks.layers import Linear, Module, check_dropout, condition_rows, dropout, label_rows
from cmjax.networks.run_blocks import dropout_key
from cmjax.types import Cond, Time


class MLPBlock(Module):
  """x + fc1(SiLU(fc0(SiLU(x)) + affine(e))): two layers, with the embedding between them."""

  def __init__(self, width: int, embed: int, *, dropout: float, rngs: nnx.Rngs):
    self.dropout = dropout
    self.fc0 = Linear(width, width, rngs=rngs)
    self.affine = Linear(embed, width, rngs=rngs)
    self.fc1 = Linear(width, width, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b n"], e: Float[Array, "b e"], key: Array | None
  ) -> Float[Array, "b n"]:
    """x and its residual branch, of the same shape; dropout only with a key."""
    h = self.fc0(jax.nn.silu(x))
    h = jax.nn.silu(h + self.affine(e).astype(h.dtype))
    return x + self.fc1(dropout(h, self.dropout, key))


class MLP(Module):
  """F(x, t) for vectors: residual SiLU blocks, each of which sees the embedding of t.

  Beside x it sees sines and cosines of x at a few low frequencies: a plain MLP learns edges slowly
  (Tancik et al. 2020, arXiv 2006.10739). On the checkerboard they took a consistency model from 77
  to 88 % of its samples on black squares, in equally many steps. The embedding of t has no such
  frequencies: there they would make dF/dt large.

  F is exactly 0 at the start. Reads cond["label"] where `num_classes` is not 0 (-1 means no
  condition), and cond["guidance"] and cond["segment"] [b] where it was built with them. Their
  layers start at 0, so that a student starts as its teacher (see `networks.grow`).

  Args:
    dim: size of a point.
    width: of the hidden layers.
    depth: number of residual blocks.
    embed_channels: width of the positional embedding of t, and of the two layers after it.
    num_classes: 0 for a network without labels.
    dropout: rate, in each block.
    frequencies: of the sines and cosines, in radians per unit of x; empty for x alone.
    guidance: whether the network is told the scale of its guidance.
    segment: whether it is told the angle at which its segment starts (multistep sCD).
    rngs: where the initial values come from.

  Raises:
    ValueError: for a dropout rate outside [0, 1); while tracing, for inputs of another shape, a
      missing condition, or an embedding width that `embeddings.positional` refuses.
  """

  float32_paths = (r"^map_", r"/affine/")

  def __init__(
    self,
    dim: Size,
    width: Size = 256,
    depth: Size = 4,
    embed_channels: Size = 64,
    num_classes: SizeOrNone = 0,
    dropout: Share = 0.0,
    frequencies: Sequence[Positive] = (1.0, 2.0, 4.0),
    guidance: bool = False,
    segment: bool = False,
    *,
    rngs: nnx.Rngs,
  ):
    check_dropout(dropout)
    self.dim, self.embed_channels, self.num_classes = dim, embed_channels, num_classes
    if num_classes:
      self.map_label = Linear(num_classes, embed_channels, rngs=rngs)
    self.map_layer0 = Linear(embed_channels, embed_channels, rngs=rngs)
    self.map_layer1 = Linear(embed_channels, embed_channels, rngs=rngs)
    self.frequencies = tuple(frequencies)
    self.fc_in = Linear(dim * (1 + 2 * len(self.frequencies)), width, rngs=rngs)
    self.block_names = tuple(f"block{i}" for i in range(depth))
    self.blocks = nnx.Dict(
      {n: MLPBlock(width, embed_channels, dropout=dropout, rngs=rngs) for n in self.block_names}
    )
    self.fc_out = Linear(width, dim, gain=0.0, rngs=rngs)
    # Last, so that all other initial weights are those of a network without them.
    self.guidance, self.segment = guidance, segment
    if guidance:
      self.map_guidance = Linear(embed_channels, embed_channels, gain=0.0, rngs=rngs)
    if segment:
      self.map_segment = Linear(embed_channels, embed_channels, gain=0.0, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b d"], t: Time, cond: Cond, *, rngs: nnx.Rngs | None = None
  ) -> Float[Array, "b d"]:
    """F for x [b, dim] and the times [b] that are embedded; dropout only with `rngs`."""
    if x.shape != (*t.shape, self.dim):
      raise ValueError(
        f"The network is for x [b, {self.dim}] and t [b]; got x {x.shape} and t {t.shape}."
      )
    e = self._embed(t, cond)
    waves = [wave(k * x) for k in self.frequencies for wave in (jnp.sin, jnp.cos)]
    h = self.fc_in(jnp.concatenate([x, *waves], axis=-1))
    for name in self.block_names:
      block = self.blocks[name]
      h = block(h, e, dropout_key(block, rngs))
    return self.fc_out(jax.nn.silu(h))

  def _embed(self, t: Time, cond: Cond) -> Float[Array, "b e"]:
    """The embedding of time and conditions that every block sees."""
    width = self.embed_channels
    e = embeddings.positional(t, width)
    if self.num_classes:
      e = e + self.map_label(label_rows(cond, self.num_classes))
    if self.guidance:
      e = e + self.map_guidance(condition_rows(cond, "guidance", t, width))
    if self.segment:
      e = e + self.map_segment(condition_rows(cond, "segment", t, width))
    return jax.nn.silu(self.map_layer1(jax.nn.silu(self.map_layer0(e))))
