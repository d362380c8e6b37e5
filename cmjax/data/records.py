"""A prepared set as a source: array_record shards and their manifest, by index, from any thread.

A record that its checksum shows to be damaged is named, counted and replaced by the next sound one,
so that every batch stays a function of the step, on any number of processes.
"""

import logging
import os
import threading
from typing import Any

import numpy as np

from cmjax.base.printable import printable
from cmjax.data import manifest as manifests
from cmjax.data import mirror as mirrors
from cmjax.data import shards
from cmjax.data.sources import Source

logger = logging.getLogger("cmjax")


def records(
  path: str | os.PathLike[str],
  *,
  split: str = "train",
  max_corrupt: int = 0,
  cache: str | os.PathLike[str] = mirrors.CACHE,
) -> "Records":
  """A split of what `python -m cmjax.data.prepare` wrote: uint8 images, or latents.

  Args:
    path: the folder that was given as --out, or a copy of it in a bucket (gs://, s3://, whatever
      `etils.epath` reads), which is mirrored to the `cache` first.
    split: its name.
    max_corrupt: how many damaged records are passed over before that is an error.
    cache: a folder on this machine, for sets in buckets.

  Raises:
    ValueError: there is no such split, its shards are not those of its manifest, or, on reading,
      more than `max_corrupt` records are damaged.
  """
  if max_corrupt < 0:
    raise ValueError(f"max_corrupt={max_corrupt} must be 0 or more.")
  try:
    folder, manifest = manifests.read(path, split)
  except ImportError as error:  # of fsspec, for what reads this kind of bucket
    raise ValueError(f"Cannot read {path}: {error}. Install that with pip.") from error
  except Exception as error:
    # Every kind of bucket has errors of its own: no such bucket, no login, no network.
    if isinstance(error, ValueError) or not manifests.is_remote(path):
      raise
    reason = printable(" ".join(str(error).split()))[:300]
    raise ValueError(f"Cannot read {path}: {type(error).__name__}: {reason}") from error
  if not manifest.num_examples:
    raise ValueError(f"{folder} holds no examples. Prepare it again.")
  if manifests.is_remote(path):
    folder = mirrors.mirror(folder, manifest, cache)
  return Records(folder, manifest, max_corrupt)


class Records(Source):
  """Examples of shards: image, label where there are classes, image_std where they are latents."""

  def __init__(self, folder: Any, manifest: manifests.Manifest, max_corrupt: int):
    self.shape, self.num_classes = manifest.layout.shape, len(manifest.class_names)
    self.class_names, self.latents = list(manifest.class_names), manifest.latents
    shards_sha256 = [shard.sha256 for shard in manifest.shards]
    self.record = {"made": manifest.details.get("made"), "shards_sha256": shards_sha256}
    counts = manifest.details.get("class_counts") or None  # of a set made elsewhere: anything
    known = all(isinstance(n, int) for n in counts or ())
    self._class_counts = {i: n for i, n in enumerate(counts) if n} if counts and known else None
    self._layout, self._max_corrupt = manifest.layout, max_corrupt
    self._starts = np.cumsum([0, *(shard.num_records for shard in manifest.shards)])
    self._paths = [folder / shard.name for shard in manifest.shards]
    self._readers: list[Any] = [None] * len(self._paths)
    self._lock, self._corrupt = threading.Lock(), set()
    for path, shard in zip(self._paths, manifest.shards, strict=True):
      size = path.stat().length if path.is_file() else None
      if size != shard.num_bytes:
        raise ValueError(
          f"{path} has {'no' if size is None else f'{size:,}'} bytes, but its manifest says "
          f"{shard.num_bytes:,}: copy it again, or prepare the data again."
        )

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {name: array[0] for name, array in self.take(np.array([i])).items()}

  @property
  def class_counts(self) -> dict[int, int] | None:
    """Label -> number of examples, of the labels that there are, as the manifest says."""
    return self._class_counts

  @property
  def num_corrupt(self) -> int:
    """How many damaged records have been met."""
    return len(self._corrupt)

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The elements at `indices` [b], shard by shard."""
    order = np.argsort(indices, kind="stable")
    indices = np.asarray(indices)[order]
    owners = np.searchsorted(self._starts, indices, side="right") - 1
    found: list[bytes] = []
    for owner in np.unique(owners):
      found += self._read(int(owner), indices[owners == owner] - self._starts[owner])
    self._check_sizes(found)
    back = np.argsort(order).tolist()
    return self._layout.unpack([found[place] for place in back])

  def _check_sizes(self, found: list[bytes]) -> None:
    expected = self._layout.num_bytes
    if wrong := set(map(len, found)) - {expected}:
      raise ValueError(
        f"{self._paths[0].parent} has records of {min(wrong)} bytes, but its manifest says "
        f"{expected}: it belongs to another set. Prepare the data again."
      )

  def _read(self, owner: int, positions: np.ndarray) -> list[bytes]:
    try:
      return self._reader(owner).read(positions.tolist())
    except RuntimeError:  # one of them is damaged: which?
      return [self._sound(owner, int(position)) for position in positions]

  def _sound(self, owner: int, position: int) -> bytes:
    """The record, or the next sound one after it, round and round."""
    start = int(self._starts[owner]) + position
    for offset in range(len(self)):
      i = (start + offset) % len(self)
      owner = int(np.searchsorted(self._starts, i, side="right")) - 1
      try:
        return self._reader(owner).read([i - int(self._starts[owner])])[0]
      except RuntimeError as error:
        self._count(i, owner, error)
    raise AssertionError("the limit is reached before every record is damaged")

  def _count(self, i: int, owner: int, error: RuntimeError) -> None:
    """Counts a damaged record, once; raises if there are too many."""
    what = f"Record {i - int(self._starts[owner])} of {self._paths[owner]} (example {i})"
    reason = " ".join(str(error).split())[:200]
    with self._lock:
      if i not in self._corrupt:
        self._corrupt.add(i)
        logger.warning(
          "%s is damaged: %s. The next one takes its place; %d so far.",
          *(what, reason, len(self._corrupt)),
        )
      too_many = len(self._corrupt) > min(self._max_corrupt, len(self) - 1)
    if too_many:
      raise ValueError(
        f"{what} is damaged: {reason}. That makes {len(self._corrupt)}, more than "
        f"max_corrupt={self._max_corrupt}. Copy the shard again, or prepare the data again "
        "(--validate names all that are damaged); or raise max_corrupt to go on without them."
      )

  def _reader(self, owner: int) -> Any:
    if self._readers[owner] is None:
      with self._lock:
        if self._readers[owner] is None:
          reader = shards.open_reader(self._paths[owner])
          expected = int(self._starts[owner + 1] - self._starts[owner])
          if reader.num_records() != expected:
            raise ValueError(
              f"{self._paths[owner]} has {reader.num_records()} records, but its manifest says "
              f"{expected}: it belongs to another set. Copy it again, or prepare the data again."
            )
          self._readers[owner] = reader
    return self._readers[owner]
