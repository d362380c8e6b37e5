r"""Pallas kernels of attention: output, output and tangent in one pass, and gradient.

Of one query, with scores x = q . k / sqrt(c), their tangents t_x = (t_q . k + q . t_k) / sqrt(c)
and p = softmax(x) (sCM, appendix F):

  y = sum p v,   t_y = sum p t_x v + sum p t_v - (sum p t_x) y

No kernel has more than a tile of x. Over tiles of keys they keep m = max x, l = sum e^(x-m),
f = sum e^(x-m) v, mu = sum e^(x-m) t_x and u = sum e^(x-m) (t_x v + t_v), rescaled where m grows;
then y = f / l and t_y = (u - mu y) / l. The gradient is FlashAttention-2's (arXiv 2307.08691).

Inside, arrays are [g, c, s] with g = batch x heads, and a tile of x has keys in rows and queries in
columns: what is known per query is a row, and nothing is padded to the 128 lanes of a TPU but the
positions. One kernel body has two shells. On a TPU the sweep over tiles is the last axis of the
grid and the state is in scratch memory (Mosaic); on an NVIDIA GPU it is a loop and the state is in
registers (Triton). Elsewhere the first is interpreted, for tests.

So far they have run interpreted only; they compile for TPU v5e ahead of time and lower for CUDA.
JAX 0.12 deprecates its Triton, so "auto" takes none of these on a GPU.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

Heads = Float[Array, "b s n c"]
PerQuery = Float[Array, "b n s"]

# Positions in a tile. On a TPU multiples of 128 (lanes); on a GPU what the registers hold.
MOSAIC_BLOCK, TRITON_BLOCK = 512, 64


class Sweep(NamedTuple):
  """A sum over tiles, apart from the hardware that takes it.

  Attributes:
    fills: (rows, value) of each array of the state, [rows, block], at the start.
    step: (state, here, there, i, j) -> state: adds tile j of `there` to tile i of `here`.
    finish: state -> outputs [rows, block].
    out_rows: the rows of each output.
  """

  fills: Sequence[tuple[int, float]]
  step: Callable[..., Sequence[Array]]
  finish: Callable[..., Sequence[Array]]
  out_rows: Sequence[int]


def forward(q: Heads, k: Heads, v: Heads, *, block: int | None = None) -> tuple[Heads, PerQuery]:
  """softmax(q k^T / sqrt(c)) v, and the logarithm of the softmax's denominator.

  Args:
    q: queries.
    k: keys.
    v: values.
    block: positions in a tile; by default what suits the platform that is compiled for.

  Returns:
    Both in float32 at least: the output, and log sum exp of the scores.
  """
  return _everywhere(_forward, (q, k, v), block)


def forward_and_tangent(
  q: Heads, k: Heads, v: Heads, dq: Heads, dk: Heads, dv: Heads, *, block: int | None = None
) -> tuple[Heads, Heads]:
  """The output and its tangent along (dq, dk, dv), in one pass, in float32 at least."""
  return _everywhere(_forward_and_tangent, (q, k, v, dq, dk, dv), block)


def backward(
  q: Heads, k: Heads, v: Heads, y: Heads, lse: PerQuery, g: Heads, *, block: int | None = None
) -> tuple[Heads, Heads, Heads]:
  """The gradients of q, k, v under a cotangent g of the output, in the dtype of each.

  Args:
    q: queries.
    k: keys.
    v: values.
    y: the output of `forward`.
    lse: the second output of `forward`.
    g: the cotangent of y.
    block: as in `forward`.
  """
  return _everywhere(_backward, (q, k, v, y, lse, g), block)


def over_batch(kernel: Callable) -> Callable:
  """The kernel on each device's part of the batch, the first axis of all that it takes and gives.

  For that the mesh must be known: `with jax.set_mesh(mesh)` around the jitted call. Without one (or
  with axes that are not AxisType.Auto) the kernel is left as it is: right on one device, while on
  several XLA gathers what it interprets and refuses Mosaic. Axes that do not divide the batch are
  left out, and the devices along them do the same work.
  """

  def run(*arrays):
    mesh = jax.sharding.get_abstract_mesh()
    axes, size = [], 1
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
      if kind == AxisType.Auto and len(arrays[0]) % (size * mesh.shape[name]) == 0:
        axes, size = [*axes, name], size * mesh.shape[name]
    if mesh.empty or not all(kind == AxisType.Auto for kind in mesh.axis_types):
      return kernel(*arrays)
    spec = P(tuple(axes)) if axes else P()
    # A pallas_call does not say over which axes its outputs vary, so nothing can be checked.
    return jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)

  return run


def _everywhere(kernel, arrays, block):
  """The kernel in the shell of the platform that the program is lowered for, once per shape."""
  return over_batch(functools.partial(_on_platform, kernel, block))(*arrays)


# jit: layers of the same shape are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _on_platform(kernel, block, *arrays):
  interpreted = functools.partial(_streamed, interpret=True)
  return jax.lax.platform_dependent(
    *arrays,
    tpu=functools.partial(kernel, _streamed, block or MOSAIC_BLOCK),
    cuda=functools.partial(kernel, _looped, block or TRITON_BLOCK),
    default=functools.partial(kernel, interpreted, block or MOSAIC_BLOCK),
  )


def _forward(shell, block, q, k, v):
  tiles = _Tiles(q.shape, block)
  c = q.shape[-1]

  def step(state, here, there, i, j):
    (m, l, f), (q,), (k, v) = state, here, there
    x = tiles.scores(k, q, keys=j)
    m_new = jnp.maximum(m, jnp.max(x, 0, keepdims=True))
    old, p = jnp.exp(m - m_new), jnp.exp(x - m_new)
    return m_new, old * l + _column_sums(p), old * f + _dot(v, p, 1, 0)

  def finish(state):
    m, l, f = state
    return f / l, m + jnp.log(l)

  sweep = Sweep([(1, -jnp.inf), (1, 0.0), (c, 0.0)], step, finish, [c, 1])
  y, lse = shell(sweep, tiles, [tiles.fold(q)], [tiles.fold(k), tiles.fold(v)])
  return tiles.unfold(y), tiles.unfold(lse)[..., 0].swapaxes(1, 2)


def _forward_and_tangent(shell, block, *arrays):
  tiles = _Tiles(arrays[0].shape, block)
  c = arrays[0].shape[-1]

  def step(state, here, there, i, j):
    (m, l, mu, f, u), (q, dq), (k, v, dk, dv) = state, here, there
    x = tiles.scores(k, q, keys=j)
    dx = tiles.scale * (_dot(k, dq, 0, 0) + _dot(dk, q, 0, 0))
    m_new = jnp.maximum(m, jnp.max(x, 0, keepdims=True))
    old, p = jnp.exp(m - m_new), jnp.exp(x - m_new)
    dp = p * dx
    return (
      m_new,
      old * l + _column_sums(p),
      old * mu + _column_sums(dp),
      old * f + _dot(v, p, 1, 0),
      old * u + _dot(v, dp, 1, 0) + _dot(dv, p, 1, 0),
    )

  def finish(state):
    _, l, mu, f, u = state
    y = f / l
    return y, (u - mu * y) / l

  fills = [(1, -jnp.inf), (1, 0.0), (1, 0.0), (c, 0.0), (c, 0.0)]
  q, k, v, dq, dk, dv = map(tiles.fold, arrays)
  outs = shell(Sweep(fills, step, finish, [c, c]), tiles, [q, dq], [k, v, dk, dv])
  return tuple(map(tiles.unfold, outs))


def _backward(shell, block, q, k, v, y, lse, g):
  tiles = _Tiles(q.shape, block)
  c = q.shape[-1]
  dtypes = [a.dtype for a in (q, k, v)]
  inner = jnp.sum(g.astype(y.dtype) * y, -1, keepdims=True)  # [b, s, n, 1]
  lse = lse.swapaxes(1, 2)[..., None]
  q, k, v, g, lse, inner = map(tiles.fold, (q, k, v, g, lse, inner))

  def p_and_dx(of_queries, of_keys, keys):
    (q, g, lse, inner), (k, v) = of_queries, of_keys
    p = jnp.exp(tiles.scores(k, q, keys=keys) - lse)
    return p, p * (_dot(v, g, 0, 0) - inner)

  def step_q(state, here, there, i, j):
    _, dx = p_and_dx(here, there, keys=j)
    return (state[0] + _dot(there[0], dx, 1, 0),)

  def step_kv(state, here, there, i, j):
    (dk, dv), (q, g, _, _) = state, there
    p, dx = p_and_dx(there, here, keys=i)
    return dk + _dot(q, dx, 1, 1), dv + _dot(g, p, 1, 1)

  of_q = Sweep([(c, 0.0)], step_q, lambda state: (tiles.scale * state[0],), [c])
  of_kv = Sweep([(c, 0.0)] * 2, step_kv, lambda s: (tiles.scale * s[0], s[1]), [c, c])
  (dq,) = shell(of_q, tiles, [q, g, lse, inner], [k, v])
  dk, dv = shell(of_kv, tiles, [k, v], [q, g, lse, inner])
  return tuple(tiles.unfold(a).astype(d) for a, d in zip((dq, dk, dv), dtypes, strict=True))


class _Tiles:
  """Positions in tiles of `block`: from [b, s, n, c] to [g, c, padded s] and back."""

  def __init__(self, shape, block):
    self.b, self.s, self.n, self.c = shape
    # A short sequence is one tile; a TPU takes it padded to its lanes.
    self.block = min(block, -(-self.s // 128) * 128)
    self.count = -(-self.s // self.block)
    self.scale = 1 / math.sqrt(self.c)

  def fold(self, x):
    x = x.transpose(0, 2, 3, 1).reshape(self.b * self.n, x.shape[-1], self.s)
    return jnp.pad(x, ((0, 0), (0, 0), (0, self.count * self.block - self.s)))

  def unfold(self, x):
    x = x[..., : self.s].reshape(self.b, self.n, -1, self.s)
    return x.transpose(0, 3, 1, 2)

  def scores(self, k, q, *, keys):
    """A tile [keys, queries]; padded keys of tile number `keys` are impossible."""
    x = self.scale * _dot(k, q, 0, 0)
    if self.s == self.count * self.block:
      return x
    index = keys * self.block + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(index < self.s, x, -jnp.inf)


def _dot(a, b, axis_a, axis_b):
  """Contracts one axis of each; float32 at least, operands included."""
  dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  a, b = a.astype(dtype), b.astype(dtype)
  return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=dtype)


def _column_sums(x):
  return jnp.sum(x, 0, keepdims=True)


def _outputs(sweep, tiles, arrays):
  """Shape and dtype of a sweep's outputs: those of its sums."""
  dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
  g, _, s = arrays[0].shape
  return [jax.ShapeDtypeStruct((g, rows, s), dtype) for rows in sweep.out_rows], dtype


def _streamed(sweep, tiles, here, there, *, interpret=False):
  """For a TPU: grid (g, tile i, tile j), the state in scratch memory from one j to the next."""
  outs, dtype = _outputs(sweep, tiles, [*here, *there])
  block, last = tiles.block, tiles.count - 1
  at_i = lambda a: pl.BlockSpec((None, a.shape[1], block), lambda g, i, j: (g, 0, i))
  at_j = lambda a: pl.BlockSpec((None, a.shape[1], block), lambda g, i, j: (g, 0, j))

  def kernel(*refs):
    i, j = pl.program_id(1), pl.program_id(2)
    ins, rest = refs[: len(here) + len(there)], refs[len(here) + len(there) :]
    out_refs, state_refs = rest[: len(outs)], rest[len(outs) :]

    @pl.when(j == 0)
    def _():
      for ref, (_, fill) in zip(state_refs, sweep.fills, strict=True):
        ref[...] = jnp.full(ref.shape, fill, ref.dtype)

    values = [ref[...] for ref in ins]
    state = [ref[...] for ref in state_refs]
    state = sweep.step(state, values[: len(here)], values[len(here) :], i, j)
    for ref, value in zip(state_refs, state, strict=True):
      ref[...] = value

    @pl.when(j == last)
    def _():
      for ref, value in zip(out_refs, sweep.finish(state), strict=True):
        ref[...] = value

  return pl.pallas_call(
    kernel,
    grid=(outs[0].shape[0], tiles.count, tiles.count),
    in_specs=[*map(at_i, here), *map(at_j, there)],
    out_specs=[at_i(out) for out in outs],
    out_shape=outs,
    scratch_shapes=[pltpu.VMEM((rows, block), dtype) for rows, _ in sweep.fills],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    interpret=interpret,
  )(*here, *there)


def _looped(sweep, tiles, here, there, *, interpret=False):
  """For an NVIDIA GPU: grid (g, tile i), a loop over the tiles j of what stays in main memory."""
  outs, dtype = _outputs(sweep, tiles, [*here, *there])
  block = tiles.block
  at_i = lambda a: pl.BlockSpec((None, a.shape[1], block), lambda g, i: (g, 0, i))
  whole = lambda a: pl.BlockSpec((None, *a.shape[1:]), lambda g, i: (g, 0, 0))

  def kernel(*refs):
    i = pl.program_id(1)
    here_refs, rest = refs[: len(here)], refs[len(here) :]
    there_refs, out_refs = rest[: len(there)], rest[len(there) :]
    held = [ref[...] for ref in here_refs]

    def body(j, state):
      tile = [ref[:, pl.ds(j * block, block)] for ref in there_refs]
      return tuple(sweep.step(state, held, tile, i, j))

    start = tuple(jnp.full((rows, block), fill, dtype) for rows, fill in sweep.fills)
    state = jax.lax.fori_loop(0, tiles.count, body, start)
    for ref, value in zip(out_refs, sweep.finish(state), strict=True):
      ref[...] = value

  return pl.pallas_call(
    kernel,
    grid=(outs[0].shape[0], tiles.count),
    in_specs=[*map(at_i, here), *map(whole, there)],
    out_specs=[at_i(out) for out in outs],
    out_shape=outs,
    compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
  )(*here, *there)
