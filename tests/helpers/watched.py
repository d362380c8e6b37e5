"""cmjax.main with every row of every batch written down, on a mesh that no process has a block of.

python tests/helpers/watched.py LOG [FLAGS ...]
"""

import contextlib
import hashlib
import json
import sys

import jax
import numpy as np

from cmjax import experiment, main
from cmjax.base import sharding


def rows(batch) -> dict[int, str]:
  """{row of the global batch: digest of its image} for the rows on this process's devices."""
  image = batch["image"]
  return {
    row: hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    for shard in image.addressable_shards
    for row, pixels in zip(
      range(*shard.index[0].indices(len(image))), np.asarray(shard.data), strict=True
    )
  }


def watching(batches, seen):
  """`experiment.batches`, which also calls seen(step, rows) for each."""

  def watched(given, mesh, start, data):
    with contextlib.closing(batches(given, mesh, start, data)) as original:
      for step, batch in enumerate(original, start):
        seen(step, rows(batch))
        yield batch

  return watched


def interleaved(make_mesh):
  """`make_mesh` with the devices of all processes in turns, as along a TPU's torus."""

  def make(data=-1, fsdp=1):
    return make_mesh(data, fsdp, devices=jax.devices()[::2] + jax.devices()[1::2])

  return make


if __name__ == "__main__":
  log = open(sys.argv.pop(1), "a", buffering=1)
  experiment.batches = watching(
    experiment.batches, lambda step, digests: log.write(json.dumps([step, digests]) + "\n")
  )
  sharding.make_mesh = interleaved(sharding.make_mesh)
  main.main()
