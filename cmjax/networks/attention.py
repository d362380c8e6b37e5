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

  Scores and softmax are in float32 at least. XLA's own implementation, on every platform: the fused
  kernels have no rule for `jax.jvp`, which the tangent of a consistency model needs.
  """
  q, k, v = (qkv[..., i] for i in range(3))
  if q.dtype == jnp.float64:
    # There dot_product_attention's softmax is in float32, too coarse for finite differences.
    scores = jnp.einsum("bpnc,bsnc->bnps", q, k) / math.sqrt(q.shape[-1])
    y = jnp.einsum("bnps,bsnc->bpnc", jax.nn.softmax(scores, axis=-1), v)
  else:
    y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
  return y.reshape(*y.shape[:2], -1)
