r"""Self-attention over the pixels of an image, lean in memory in forward mode too.

Scores, softmax and sums are in float32 at least.

  implementation  what it is                                     memory  second derivatives
  xla             full attention, plain operations               O(s^2)  yes
  blockwise       online softmax over blocks of keys, plain JAX  O(s)    not a number
  two_path        output and gradient by cuDNN or the Pallas     O(s)    not a number
                  flash attention, tangent as in blockwise
  pallas          own kernels for TPU (Mosaic), GPU (Triton)     O(s)    not a number
  auto            xla up to 1024 pixels; beyond, see `choose`

Fused attentions have no rule for `jax.jvp`, which the tangent of a consistency model needs. Here
one operation has all rules (`_operation`): its derivative is a linear map whose transpose is the
flash backward pass. So it is right under `jax.jvp`, `jax.grad`, the gradient of a loss on the
primal of a jvp, `jax.checkpoint`, `lax.scan` and `jit`. What depends on the derivative's own
derivative (a loss on a tangent that is not stopped, a Hessian) is not a number, in every sample
where it would not be zero, and not silently wrong: take xla for that. There is no rule for `vmap`
of a derivative: JAX says so.

On a mesh, xla, blockwise and cuDNN follow the sharding of the batch by themselves. The Pallas
kernels do under `with jax.set_mesh(mesh)` (see `attention_kernels.over_batch`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import linear_call
from jaxtyping import Float

from cmjax.networks import blockwise

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "two_path", "pallas")
# Up to here its matrix is small, so the one that has all derivatives and vmap is taken, although
# blockwise is faster on a CPU from 256 pixels on (benchmarks/cost/attention.py).
LONGEST_FOR_XLA = 1024


def split_heads(qkv: Float[Array, "b h w m"], num_heads: int) -> Float[Array, "b p n c 3"]:
  """Pixels in one row, then heads, channels and {q, k, v}: the channel order of EDM's qkv."""
  b, h, w, m = qkv.shape
  return qkv.reshape(b, h * w, num_heads, m // (3 * num_heads), 3)


def attend(
  qkv: Float[Array, "b p n c 3"], implementation: str = "auto", *, block: int | None = None
) -> Float[Array, "b p m"]:
  """`attention` over all pixels p, the heads n side by side: m = n c."""
  q, k, v = (qkv[..., i] for i in range(3))
  y = attention(q, k, v, implementation=implementation, block=block)
  return y.reshape(*y.shape[:2], -1)


def attention(
  q: Array, k: Array, v: Array, *, implementation: str = "auto", block: int | None = None
) -> Array:
  """softmax(q k^T / sqrt(c)) v of each head; scores, softmax and sums in float32 at least.

  Args:
    q: queries [b, s, n, c]: positions, heads, channels of a head.
    k: keys, of the same shape and dtype.
    v: values, likewise.
    implementation: of the table above.
    block: positions at a time, for blockwise and pallas; by default what suits the platform. Any
      sequence length goes with any block.

  Returns:
    [b, s, n, c] in the dtype of q.

  Raises:
    ValueError: for an unknown implementation, shapes or dtypes that differ, a block below 1.
  """
  check_implementation(implementation)
  _check_arrays(q, k, v)
  if block is not None and block < 1:
    raise ValueError(f"block={block} must be at least 1 position, or None for the default.")
  if implementation == "auto":
    implementation = choose(q.shape[1], q.dtype)
  if implementation == "xla":
    return _xla(q, k, v)
  return _operation(_PARTS[implementation](block))(q, k, v).astype(q.dtype)


def choose(length: int, dtype: Any) -> str:
  """What "auto" is for this sequence length and dtype on the default backend.

  xla up to 1024 positions. Beyond, on an NVIDIA GPU in half precision two_path, on a TPU pallas if
  there is a mesh to split it along (`jax.set_mesh`), and blockwise everywhere else. A program
  compiled ahead of time for another platform should name its implementation.
  """
  if length <= LONGEST_FOR_XLA:
    return "xla"
  backend = jax.default_backend()
  if backend == "gpu" and jnp.dtype(dtype).itemsize == 2:
    return "two_path"
  if backend == "tpu" and not jax.sharding.get_abstract_mesh().empty:
    return "pallas"
  return "blockwise"


def check_implementation(name: str) -> None:
  """Refuses what is no implementation of attention."""
  if name not in IMPLEMENTATIONS:
    raise ValueError(f"Unknown attention {name!r}. Choose from: {', '.join(IMPLEMENTATIONS)}.")


def _check_arrays(q, k, v):
  same = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
  if not same or q.ndim != 4 or not jnp.issubdtype(q.dtype, jnp.floating) or 0 in q.shape:
    arrays = zip("qkv", (q, k, v), strict=True)
    got = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays)
    raise ValueError(
      f"Attention of {got}: all three must be [batch, positions, heads, channels], none of them 0, "
      "of one floating-point dtype."
    )


def _xla(q, k, v):
  if q.dtype == jnp.float64:
    # There dot_product_attention's softmax is in float32, too coarse for finite differences.
    scores = jnp.einsum("bpnc,bsnc->bnps", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("bnps,bsnc->bpnc", jax.nn.softmax(scores, axis=-1), v)
  return jax.nn.dot_product_attention(q, k, v, implementation="xla")


class _Parts(NamedTuple):
  """Three functions of arrays [b, s, n, c] that make an operation.

  Attributes:
    forward: (q, k, v) -> y and what else its derivatives want, both in float32 at least.
    tangent: (q, k, v, y, extra), (dq, dk, dv) -> dy.
    backward: (q, k, v, y, extra), g -> (gradients of q, k, v): the transpose of `tangent`.
  """

  forward: Callable
  tangent: Callable
  backward: Callable


@functools.cache
def _operation(parts: _Parts) -> Callable:
  """One function with every first derivative.

  Its derivative is `linear_call`: in forward mode `tangent`, transposed in reverse mode `backward`.
  The arrays that it is taken at are stopped, so that the tangent of a consistency model costs its
  backward pass nothing; what that leaves out of a second derivative, `_spoiled` makes visible.
  """

  @jax.custom_jvp
  def operation(q, k, v):
    return parts.forward(q, k, v)

  @operation.defjvp
  def _(primals, tangents):
    y, extra = operation(*primals)
    at = jax.lax.stop_gradient((*primals, y, extra))
    dy = linear_call(
      lambda at, tangents: parts.tangent(at, tuple(tangents)),
      lambda at, g: jnp.stack(parts.backward(at, g)),
      at,
      # One array: to be transposed, linear_call must be differentiated in all that it takes.
      jnp.stack(tangents),
    )
    # `extra` never leaves the operation but for `at`, so its tangent is nobody's.
    return (y, extra), (dy * _spoiled(*primals), jax.tree.map(jnp.zeros_like, extra))

  return lambda q, k, v: operation(q, k, v)[0]


@jax.custom_jvp
def _spoiled(q, k, v):
  """1 for each sample [b, 1, 1, 1]; its derivative is nan where it is asked for, and else 0."""
  del k, v
  return jnp.ones((len(q), 1, 1, 1), q.dtype)


@_spoiled.defjvp
def _(primals, tangents):
  shape = primals[0].shape

  def nan_where(mask):
    return jnp.where(mask, jnp.nan, 0.0).astype(tangents[0].dtype)

  return _spoiled(*primals), linear_call(
    lambda _, tangents: nan_where(jnp.any(tangents != 0, (0, 2, 3, 4))[:, None, None, None]),
    lambda _, g: jnp.broadcast_to(nan_where(g != 0), (3, *shape)),
    (),
    jnp.stack(tangents),
  )


@functools.cache
def _blockwise(block: int | None) -> _Parts:
  parts = blockwise.forward, blockwise.tangent, blockwise.backward
  return _Parts(*(functools.partial(part, block=block or blockwise.BLOCK) for part in parts))


@functools.cache
def _two_path(block: int | None) -> _Parts:
  """Fused output and gradient, blockwise tangent, whose statistics the fused kernels do not give.

  So the tangent makes them anew, and the backward pass is that of the fused function with its
  forward pass again. Where there is no fused kernel it is all blockwise.
  """
  plain = _blockwise(block)

  def forward(q, k, v):
    wide = jnp.promote_types(q.dtype, jnp.float32)
    fused = {name: lambda *a, f=f: f(*a).astype(wide) for name, f in _fused(q).items()}
    return jax.lax.platform_dependent(q, k, v, default=lambda *a: plain.forward(*a)[0], **fused), ()

  def tangent(at, tangents):
    return plain.tangent((*at[:3], *plain.forward(*at[:3])), tangents)

  def backward(at, g):
    pull = lambda f: lambda q, k, v, g: jax.vjp(f, q, k, v)[1](g.astype(q.dtype))
    fused = {name: pull(f) for name, f in _fused(at[0]).items()}
    default = lambda q, k, v, g: plain.backward((q, k, v, *plain.forward(q, k, v)), g)
    return jax.lax.platform_dependent(*at[:3], g, default=default, **fused)

  return _Parts(forward, tangent, backward)


def _fused(q):
  """Fused attentions by platform, those that take this dtype and that can be traced here."""
  fused: dict[str, Callable] = {"tpu": _tpu_flash}
  # Tracing cuDNN's asks the GPU which it is; it is for half precision and 8, 16, ... 128 channels.
  small = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
  if jax.default_backend() == "gpu" and q.dtype.itemsize == 2 and small:
    fused["cuda"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
  return {} if q.dtype == jnp.float64 else fused


def _tpu_flash(q, k, v):
  """JAX's own flash attention for TPU; its lengths are multiples of 128, so we pad and mask."""
  from jax.experimental.pallas.ops.tpu import flash_attention as tpu_flash

  from cmjax.networks import attention_kernels as kernels

  length = q.shape[1]
  padding = -length % 128

  def run(q, k, v):
    q, k, v = (jnp.pad(a, ((0, 0), (0, padding), (0, 0), (0, 0))) for a in (q, k, v))
    real = jnp.broadcast_to(jnp.arange(length + padding) < length, q.shape[:2]).astype(jnp.int32)
    y = tpu_flash.flash_attention(
      *(a.swapaxes(1, 2) for a in (q, k, v)),
      segment_ids=tpu_flash.SegmentIds(real, real) if padding else None,
      sm_scale=1 / math.sqrt(q.shape[-1]),
    )
    return y.swapaxes(1, 2)[:, :length]

  return kernels.over_batch(run)(q, k, v)


@functools.cache
def _pallas(block: int | None) -> _Parts:
  # Here, not above: Pallas takes half a second to import, and few need it.
  from cmjax.networks import attention_kernels as kernels

  def tangent(at, tangents):
    return kernels.forward_and_tangent(*at[:3], *tangents, block=block)[1]

  def backward(at, g):
    q, k, v, y, lse = at
    return kernels.backward(q, k, v, y, lse, g, block=block)

  return _Parts(functools.partial(kernels.forward, block=block), tangent, backward)


_PARTS = {"blockwise": _blockwise, "two_path": _two_path, "pallas": _pallas}
