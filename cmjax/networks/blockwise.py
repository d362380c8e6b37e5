"""Attention by online softmax: scores of all queries with one block of keys at a time, plain JAX.

Memory is O(s) in forward pass, tangent and gradient: `attention` makes one operation of the three,
so that no scan is ever differentiated. Any axis but the positions may be sharded. Everything is in
float32 at least; the last block is padded, and its padding impossible.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

BLOCK = 256  # keys at a time

Heads = Float[Array, "b s n c"]
PerQuery = Float[Array, "b n s 1"]
At = tuple[Heads, Heads, Heads, Heads, PerQuery]  # q, k, v and the outputs of `forward`


def forward(q: Heads, k: Heads, v: Heads, *, block: int = BLOCK) -> tuple[Heads, PerQuery]:
  """softmax(q k^T / sqrt(c)) v, and log sum exp of the scores, in float32 at least."""
  scores, blocks = _score_blocks(block, q)
  dtype = _wide(q)
  shape = (*q.shape[:1], q.shape[2], q.shape[1], 1)

  def step(state, xs):
    m, l, f = state
    k, v, valid = xs
    x = scores(k, valid)
    m_new = jnp.maximum(m, jnp.max(x, -1, keepdims=True))
    old, p = jnp.exp(m - m_new), jnp.exp(x - m_new)
    return (m_new, old * l + jnp.sum(p, -1, keepdims=True), old * f + _mix(p, v)), None

  f = jnp.zeros((*shape[:3], q.shape[3]), dtype)
  start = (jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype), f)
  (m, l, f), _ = jax.lax.scan(step, start, blocks(k, v))
  return (f / l).swapaxes(1, 2), m + jnp.log(l)


def tangent(at: At, tangents: tuple[Heads, Heads, Heads], *, block: int = BLOCK) -> Heads:
  """dy = sum p (dx v + dv) - (sum p dx) y, of scores x and their tangents dx (sCM, appendix F)."""
  q, k, v, y, lse = at
  dq, dk, dv = tangents
  scores, blocks = _score_blocks(block, q)
  dq_scores, _ = _score_blocks(block, dq)

  def step(state, xs):
    u, mu = state
    k, dk, v, dv, valid = xs
    p = jnp.exp(scores(k, valid) - lse)
    dp = p * (dq_scores(k) + scores(dk))
    return (u + _mix(dp, v) + _mix(p, dv), mu + jnp.sum(dp, -1, keepdims=True)), None

  y = y.swapaxes(1, 2)
  start = (jnp.zeros_like(y), jnp.zeros_like(lse))
  (u, mu), _ = jax.lax.scan(step, start, blocks(k, dk, v, dv))
  return (u - mu * y).swapaxes(1, 2)


def backward(at: At, g: Heads, *, block: int = BLOCK) -> tuple[Heads, Heads, Heads]:
  """The gradients of q, k, v in their dtypes (FlashAttention-2, arXiv 2307.08691, algorithm 2)."""
  q, k, v, y, lse = at
  scores, blocks = _score_blocks(block, q)
  scale = 1 / math.sqrt(q.shape[-1])
  inner = jnp.sum(g * y, -1, keepdims=True).swapaxes(1, 2)
  g, q = g.swapaxes(1, 2), q.swapaxes(1, 2)

  def step(dq, xs):
    k, v, valid = xs
    p = jnp.exp(scores(k, valid) - lse)
    dx = scale * p * (_products(g, v) - inner)
    return dq + _mix(dx, k), (_mix(dx.mT, q), _mix(p.mT, g))

  dq, (dk, dv) = jax.lax.scan(step, jnp.zeros(q.shape, y.dtype), blocks(k, v))
  joined = [jnp.moveaxis(a, 0, 2).reshape(*q.shape[:2], -1, q.shape[3]) for a in (dk, dv)]
  dq, dk, dv = (a.swapaxes(1, 2)[:, : k.shape[1]] for a in (dq, *joined))
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _score_blocks(block, q):
  """The scores of all queries q with a block of keys, and how arrays of keys come in blocks."""
  length, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
  q = q.swapaxes(1, 2)
  block = min(block, length)
  count = -(-length // block)

  def scores(k, valid=None):
    x = scale * _products(q, k)
    return x if valid is None else jnp.where(valid, x, -jnp.inf)

  def blocks(*arrays):
    valid = (jnp.arange(count * block) < length).reshape(count, 1, 1, 1, block)
    return (*(_in_blocks(a, count, block) for a in arrays), valid)

  return scores, blocks


def _in_blocks(x, count, block):
  """[b, s, n, c] -> [count, b, n, block, c], padded with zeros."""
  b, s, n, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, count * block - s), (0, 0), (0, 0)))
  return x.reshape(b, count, block, n, c).transpose(1, 0, 3, 2, 4)


def _products(a, b):
  """[..., s, c], [..., block, c] -> [..., s, block], summed in float32 at least."""
  dtype = jnp.promote_types(a.dtype, b.dtype)
  a, b = a.astype(dtype), b.astype(dtype)
  return jnp.einsum("bnsc,bnkc->bnsk", a, b, preferred_element_type=_wide(a))


def _mix(p, v):
  """[..., s, block], [..., block, c] -> [..., s, c]; p is not rounded to the dtype of v."""
  return p @ v.astype(p.dtype)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)
