"""Records of one size in array_record files, and how the numbers lie in a record.

A record is the numbers of one example, row by row, little-endian, and then its label as int32 where
there are classes. One record is one chunk of the file, with a checksum of its own: a damaged one is
told from the others. array_record writes the same bytes for the same records.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

# A group of several would be read and decoded whole for each of its records; pixels compress
# little, and reading them takes a quarter more CPU time then.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
# Of a read in the file: a small record and its header in one.
BUFFER_BYTES = 4096
PARTIAL = ".partial"
# What a chunk and its place in the index take beside the record.
OVERHEAD = 80


class Layout(NamedTuple):
  """What a record holds.

  Attributes:
    shape: of one image, or of one latent.
    dtype: of its numbers: uint8, or float32 for latents.
    has_std: whether the std of each number follows: of latents, whose mean is the image.
    has_label: whether a label comes last.
  """

  shape: tuple[int, ...]
  dtype: str = "uint8"
  has_std: bool = False
  has_label: bool = True

  @property
  def num_bytes(self) -> int:
    """Of a record."""
    return self._image_bytes * (1 + self.has_std) + 4 * self.has_label

  @property
  def _image_bytes(self) -> int:
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize

  def pack(self, arrays: dict[str, np.ndarray]) -> list[bytes]:
    """Records of arrays image, image_std and label, [n, ...] each, as far as there are such."""
    dtype = np.dtype(self.dtype).newbyteorder("<")
    parts = [arrays["image"].astype(dtype, copy=False)]
    parts += [arrays["image_std"].astype(dtype, copy=False)] if self.has_std else []
    rows = [np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in parts]
    if self.has_label:
      rows.append(np.ascontiguousarray(arrays["label"].astype("<i4")).reshape(-1, 1).view(np.uint8))
    whole = np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
    assert whole.shape[1] == self.num_bytes, f"{whole.shape} for {self}"
    return [row.tobytes() for row in whole]

  def unpack(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The arrays of records, [n, ...] each."""
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), self.num_bytes)
    size, dtype = self._image_bytes, np.dtype(self.dtype).newbyteorder("<")
    shape = (len(records), *self.shape)
    arrays = {"image": rows[:, :size].view(dtype).reshape(shape)}
    if self.has_std:
      arrays["image_std"] = rows[:, size : 2 * size].view(dtype).reshape(shape)
    if self.has_label:
      arrays["label"] = rows[:, -4:].view("<i4").reshape(-1).astype(np.int32)
    return arrays


def name(split: str, index: int, count: int) -> str:
  """The file of shard `index` of `count`.

  >>> name("train", 3, 22)
  'train-00003-of-00022.array_record'
  """
  return f"{split}-{index:05d}-of-{count:05d}.array_record"


def write(path: Path, records: Iterable[bytes]) -> dict[str, Any]:
  """Writes a shard under another name, reads its length back, and then gives it its own name.

  Returns:
    num_records, num_bytes and sha256 of the file.

  Raises:
    ValueError: it cannot be written, such as on a full disk; what was written of it is removed.
  """
  partial, count = path.with_name(path.name + PARTIAL), 0
  try:
    writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
    if not writer.ok():
      raise OSError(f"{partial} cannot be opened for writing")
    for record in records:
      writer.write(record)
      count += 1
    writer.close()
    with partial.open("rb") as file:
      os.fsync(file.fileno())
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = partial.stat().st_size
    if num_records(partial) != count:
      raise OSError(f"{partial} does not hold the {count} records that were written to it")
    partial.replace(path)
  except (OSError, RuntimeError) as error:
    partial.unlink(missing_ok=True)
    full = "No space left" in str(error)
    reason = "the disk is full" if full else " ".join(str(error).split())[:300]
    raise ValueError(
      f"Cannot write {path}: {reason}. Nothing of it is left, and shards that are whole are kept: "
      f"{'free some space' if full else 'mend that'} and start the same command again."
    ) from error
  return {"num_records": count, "num_bytes": size, "sha256": digest}


def open_reader(path: Any) -> ArrayRecordReader:
  """A reader of the shard at a path, for random access from any thread.

  Raises:
    ValueError: there is no such file, or its index is damaged.
  """
  reader = ArrayRecordReader(str(path), READER_OPTIONS, file_reader_buffer_size=BUFFER_BYTES)
  if not reader.ok():
    raise ValueError(
      f"Cannot open {path}: it is not there, or its end is damaged. Copy it again, or prepare the "
      "data again; --validate says which shards are whole."
    )
  return reader


def num_records(path: Any) -> int:
  """How many records a shard says that it has."""
  reader = open_reader(path)
  try:
    return reader.num_records()
  finally:
    reader.close()
