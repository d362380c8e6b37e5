"""Gradient accumulation: a batch in several passes, with the noise and the result of one.

Pass m of n has every n-th sample from m on: i = j n + m. So each device goes through samples that
it has already, whatever their number. Its random draws are those samples' part of the draw for the
whole batch, to the bit: counter-based generators give each number by its place, and the keys of a
pass (`part_key`) count as the whole batch would. Losses and networks do not know of it; a draw
must have the samples of the batch as its first axis, or be flat in that order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp

from cmjax.types import Array, Batch, Metrics

BASE = "threefry2x32"


def check(batch_size: int, microbatch: int | None, num_devices: int) -> int:
  """How many passes a batch takes; 1 without a `microbatch`, the samples in one.

  Raises:
    ValueError: if it does not divide the batch, or the devices do not divide it.
  """
  if microbatch is None:
    return 1
  good = [b for b in range(1, batch_size + 1) if batch_size % b == 0 and b % num_devices == 0]
  if microbatch not in good:
    raise ValueError(
      f"microbatch={microbatch} must divide batch_size={batch_size} and be a multiple of the "
      f"{num_devices} devices: {', '.join(map(str, good))}; or None for one pass."
    )
  return batch_size // microbatch


def part_key(key: Array, index: Array | int, num_parts: int, size: int) -> Array:
  """A key whose draws are those of `key`, of a part of the batch.

  Args:
    key: of JAX's default generator.
    index: m, which part.
    num_parts: n.
    size: samples in a part.

  Returns:
    A key to split, fold in and draw with as any other. A draw whose first axis is not `size` (or
    `size` times the numbers of one sample, flat) raises a ValueError while it is traced.

  Raises:
    ValueError: for a key of another generator, or without `jax_threefry_partitionable`.
  """
  if str(jax.random.key_impl(key)) != BASE or not jax.config.jax_threefry_partitionable:
    raise ValueError(
      f"microbatch needs keys of the generator {BASE} with jax_threefry_partitionable=True, JAX's "
      f"defaults; got {jax.random.key_impl(key)}. Leave both as they are, or set microbatch=None."
    )
  data = jax.random.key_data(key)
  words = jnp.append(data, jnp.asarray(index, data.dtype))
  return jax.random.wrap_key_data(words, impl=_generator(num_parts, size))


@functools.cache
def _generator(num_parts: int, size: int) -> Any:
  """Threefry, with words (k0, k1, m) in a key, that counts as part m does."""
  base = lambda words: jax.random.wrap_key_data(words[:2], impl=BASE)

  def split(words, shape):
    new = jax.random.key_data(jax.random.split(base(words), shape))
    return jnp.concatenate([new, jnp.broadcast_to(words[2], (*shape, 1))], axis=-1)

  def fold_in(words, data):
    return jnp.append(jax.random.key_data(jax.random.fold_in(base(words), data)), words[2])

  def random_bits(words, bit_width, shape):
    total = math.prod(shape)
    if not shape or shape[0] % size or not total:
      raise ValueError(
        f"A draw of shape {tuple(shape)} is not one of {size} samples: under microbatch, draws "
        "have the samples of the batch as their first axis."
      )
    high, low = _counts(words[2], num_parts, size, total // size)
    high, low = jax.extend.random.threefry2x32_p.bind(words[0], words[1], high, low)
    return _as_words(high, low, bit_width).reshape(shape)

  def seed(seed):
    raise TypeError("A part of a batch has no seed: its key is made by part_key.")

  return jax.extend.random.define_prng_impl(
    key_shape=(3,),
    seed=seed,
    split=split,
    random_bits=random_bits,
    fold_in=fold_in,
    name=f"part_of_{num_parts}x{size}",
    tag="part",
  )


def _counts(m: Array, num_parts: int, size: int, width: int) -> tuple[Array, Array]:
  """The places (j n + m) width + r of a part's numbers in the whole draw: high and low words."""
  if num_parts * size >= 2**16 or width >= 2**32:
    raise ValueError(
      f"A batch of {num_parts * size} samples, {width} numbers each, is too large to be drawn in "
      "parts (65,535 samples at most)."
    )
  row = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(num_parts) + m
  # row * width in 64 bits: row has 16 of them, so that a product with half of width has 32.
  upper = row * jnp.uint32(width >> 16)
  low = row * jnp.uint32(width & 0xFFFF)
  start = low + (upper << 16)
  high = (upper >> 16) + (start < low).astype(jnp.uint32)
  r = jax.lax.broadcasted_iota(jnp.uint32, (size, width), 1)
  low = start[:, None] + r
  return high[:, None] + (low < r).astype(jnp.uint32), low


def _as_words(high: Array, low: Array, bit_width: int) -> Array:
  """The bits of two words as one of `bit_width`, as JAX makes them."""
  if bit_width == 64:
    return (high.astype(jnp.uint64) << jnp.uint64(32)) | low.astype(jnp.uint64)
  return (high ^ low).astype(f"uint{bit_width}")


def accumulate(
  grad_fn: Callable[[Batch, Array], tuple[tuple[Array, Metrics], Any]],
  batch: Batch,
  key: Array,
  num_parts: int,
) -> tuple[tuple[Array, Metrics], Any]:
  """What grad_fn(batch, key) gives, from `num_parts` passes: the means of value and gradients.

  Right for losses that are a mean over samples. Metrics are merged: a mean is that over the whole
  batch, an extremum becomes the mean of those of the passes.

  Args:
    grad_fn: of `jax.value_and_grad(..., has_aux=True)`: ((value, metrics), gradients).
    batch: arrays [B, ...] with B a multiple of `num_parts`.
    key: of the whole batch's draws.
    num_parts: 1 is grad_fn(batch, key) itself.
  """
  if num_parts == 1:
    return grad_fn(batch, key)
  size = len(next(iter(batch.values()))) // num_parts
  parts = jax.tree.map(lambda a: a.reshape(size, num_parts, *a.shape[1:]).swapaxes(0, 1), batch)
  part = lambda m, arrays: grad_fn(arrays, part_key(key, m, num_parts, size))

  def body(sums, each):
    return jax.tree.map(jnp.add, sums, part(*each)), None

  shapes = jax.eval_shape(part, 0, jax.tree.map(lambda a: a[0], parts))
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  (sums, _) = jax.lax.scan(body, zeros, (jnp.arange(num_parts), parts))
  (value, metrics), grads = sums
  return (value / num_parts, metrics), jax.tree.map(lambda g: g / num_parts, grads)
