"""Self-attention over the pixels of an image, with q, k and v as EDM and EDM2 lay them out."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def split_heads(qkv: Float[Array, "b h w m"], num_heads: int) -> Float[Array, "b p n c 3"]:
  """Pixels in one row, then heads, channels and {q, k, v}: the channel order of EDM's qkv."""
  b, h, w, m = qkv.shape
  return qkv.reshape(b, h * w, num_heads, m // (3 * num_heads), 3)


def attend(qkv: Float[Array, "b p n c 3"]) -> Float[Array, "b p m"]:
  """softmax(q k^T / sqrt(c)) v over all pixels p, the heads n side by side: m = n c.

  Scores and softmax are in float32 at least. Written out because the fused kernels have no rule
  for `jax.jvp`, which the tangent of a consistency model needs, and because
  `jax.nn.dot_product_attention` takes its softmax in float32 where the network is in float64.
  """
  q, k, v = (qkv[..., i] for i in range(3))
  wide = jnp.promote_types(q.dtype, jnp.float32)
  scores = jnp.einsum("bpnc,bsnc->bnps", q, k, preferred_element_type=wide)
  weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
  y = jnp.einsum("bnps,bsnc->bpnc", weights, v)
  return y.reshape(*y.shape[:2], -1)
