"""How a network runs its blocks: each as itself, rematerialised, or equal ones as one scan.

`encode` and `decode` walk down and up a U-Net whose blocks are in `enc` and `dec`, in the order of
`enc_specs` and `dec_specs`. Three options of the network say how; none changes a value, a
derivative or a dropout mask (but for rounding), nor the name or the shape of a weight:

* as it is: every block is a part of the program;
* `remat`: a gradient computes the inside of each block again instead of storing it;
* `scan`: neighbours that are equal, and whose inputs are, are one `jax.lax.scan` over their stacked
  weights, so that the program to compile has one of them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cmjax.networks.layers import along_batch, whole

Join = Callable[[Array, Array], Array]


def dropout_key(block: Any, rngs: nnx.Rngs | None) -> Array | None:
  """The next key of the stream for a block that drops anything; None for others, and without."""
  return rngs.dropout() if rngs is not None and block.dropout else None


def run_block(
  block: Any, x: Array, e: Array, key: Array | None, *, remat: bool, scanned: bool = False
) -> Array:
  """block(x, e, key), along the batch, its weights gathered; see the module for `remat`.

  `scanned` says that it is in the body of a scan, where XLA cannot undo a rematerialisation.
  """
  graphdef, params = nnx.split(block)

  def call(params, x, e, key):
    return along_batch(nnx.merge(graphdef, whole(params))(along_batch(x), e, key))

  return (jax.checkpoint(call, prevent_cse=not scanned) if remat else call)(params, x, e, key)


def scan_blocks(
  graphdef: Any,
  params: Any,
  x: Array,
  e: Array,
  keys: Array | None,
  *,
  remat: bool,
  inputs: Array | None = None,
  join: Join | None = None,
  collect: bool = False,
) -> tuple[Array, Any]:
  """Equal blocks in turn as one scan.

  Args:
    graphdef: of each of them.
    params: of all, stacked along axis 0.
    x: what the first one reads.
    e: what all of them read beside.
    keys: of their dropout [n], or None.
    remat: see the module.
    inputs: [n, ...], one more array for each, that is joined to what it reads.
    join: how.
    collect: whether to return all outputs.

  Returns:
    The output of the last one, and those of all [n, ...] or None.
  """

  def body(x, each):
    params, key, more = each
    x = x if more is None or join is None else join(x, more)
    x = run_block(nnx.merge(graphdef, params), x, e, key, remat=remat, scanned=True)
    return x, x if collect else None

  return jax.lax.scan(body, x, (params, keys, inputs))


def concatenate(x: Array, skip: Array) -> Array:
  """Both along the channels."""
  return jnp.concatenate([x, skip], axis=-1)


def encode(
  net: Any,
  x: Array,
  e: Array,
  rngs: nnx.Rngs | None,
  after: Callable[[Any, Array], Array] | None = None,
) -> list[Array]:
  """x, and the output of each block of the encoder: what the decoder is given.

  Args:
    net: the network.
    x: the image after the first convolution.
    e: the embedding.
    rngs: the stream of dropout keys, or None.
    after: (spec, output) -> the output to go on with, of blocks that change the resolution.
  """
  outputs = [x]
  for specs in _runs([(spec, None) for spec in net.enc_specs], scan=net.scan):
    blocks = [net.enc[spec.name] for spec, _ in specs]
    keys = [dropout_key(block, rngs) for block in blocks]
    more = _run(blocks, outputs[-1], e, keys, remat=net.remat)
    if after is not None and specs[0][0].resample != "keep":
      more = [after(specs[0][0], more[0])]
    outputs += more
  return outputs


def decode(net: Any, skips: list[Array], e: Array, rngs: nnx.Rngs | None, join: Join) -> Array:
  """The output of the last block of the decoder; takes what `encode` gave, from the end.

  `join` puts a skip connection beside what the block before gave.
  """
  x, skips = skips[-1], list(skips)
  pairs = [(spec, skips.pop() if spec.joins else None) for spec in net.dec_specs]
  for specs in _runs(pairs, scan=net.scan):
    blocks = [net.dec[spec.name] for spec, _ in specs]
    keys = [dropout_key(block, rngs) for block in blocks]
    joined = [skip for _, skip in specs]
    x = _run(blocks, x, e, keys, remat=net.remat, joined=joined, join=join)[-1]
  return x


def _runs(pairs: list[tuple[Any, Array | None]], *, scan: bool):
  """Neighbours that are equal together, without `scan` each by itself."""
  if not scan:
    return [[pair] for pair in pairs]

  def kind(pair):
    spec, skip = pair
    # A block that changes the resolution has no equal: its resolution is that of its output.
    own = spec.name if spec.resample != "keep" else spec.resolution
    return own, spec[1:], None if skip is None else skip.shape

  return [list(run) for _, run in itertools.groupby(pairs, kind)]


def _run(
  blocks: Sequence[Any],
  x: Array,
  e: Array,
  keys: Sequence[Array | None],
  *,
  remat: bool,
  joined: Sequence[Array | None] = (None,),
  join: Join | None = None,
) -> list[Array]:
  """The outputs of equal blocks in turn: of one as it is, of more as a scan."""
  if len(blocks) == 1:
    x = x if joined[0] is None or join is None else join(x, joined[0])
    return [run_block(blocks[0], x, e, keys[0], remat=remat)]
  graphdef = nnx.graphdef(blocks[0])
  stack = lambda arrays: None if arrays[0] is None else jnp.stack(arrays)
  params = jax.tree.map(lambda *a: jnp.stack(a), *(nnx.state(block) for block in blocks))
  more: dict[str, Any] = dict(inputs=stack(joined), join=join, collect=True)
  _, outputs = scan_blocks(graphdef, params, x, e, stack(keys), remat=remat, **more)
  return list(outputs)
