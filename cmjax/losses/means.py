"""What a loss reports beside its value: means that merge, whole and by time bin.

A mean is kept as (total, count), so that steps, devices and hosts merge by adding and a bin that a
batch leaves empty stays empty, rather than becoming a NaN or a zero. No gradient goes through a
mean, so that differentiating a loss does no work for what it reports.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.types import Array, Time

NUM_BINS = 6
EDGES = np.linspace(0, np.pi / 2, NUM_BINS + 1)
BINS = tuple(f"t{low:.2f}-{high:.2f}" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True))


class Mean(NamedTuple):
  """A mean as its total and its count."""

  total: Array
  count: Array


def mean(values: Array) -> Mean:
  """The mean over all entries of an array."""
  return Mean(jnp.sum(jax.lax.stop_gradient(values)), jnp.asarray(values.size, jnp.float32))


def by_time(name: str, values: Time, t: Time) -> dict[str, Mean]:
  """The mean of a value per sample, over all and over each of six equal bins of [0, pi/2].

  Returns:
    `{name: ..., name/t0.00-0.26: ..., ...}`.
  """
  values = jax.lax.stop_gradient(values)
  bins = jnp.clip(jnp.floor(t / EDGES[1]).astype(jnp.int32), 0, NUM_BINS - 1)
  members = (bins[None] == jnp.arange(NUM_BINS)[:, None]).astype(values.dtype)
  totals, counts = jnp.sum(members * values[None], -1), jnp.sum(members, -1)
  parts = zip(BINS, jnp.unstack(totals), jnp.unstack(counts), strict=True)
  rows = {f"{name}/{label}": Mean(total, count) for label, total, count in parts}
  return {name: mean(values), **rows}


def merge(metrics: list[dict[str, Mean]]) -> dict[str, float]:
  """The means over several steps' metrics, on the host; a bin that stayed empty is left out."""
  merged = {}
  for name in {name: None for step in metrics for name in step}:
    parts = [step[name] for step in metrics if name in step]
    count = sum(float(part.count) for part in parts)
    if count:
      merged[name] = sum(float(part.total) for part in parts) / count
  return merged
