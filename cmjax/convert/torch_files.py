"""What torch.save writes: a zip of a pickle and the bytes of its storages, or the older stream."""

import functools
import io
import mmap
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.base import zip_files
from cmjax.base.printable import shown
from cmjax.convert import pickles
from cmjax.convert.tensors import Budget, Storage

LOCAL_HEADER = 30  # bytes, before the name and the extra field


def read_zip(path: Path, data: mmap.mmap, budget: Budget) -> Any:
  """The object in a .pt file; its storages are views of `data` and are read when asked for.

  Args:
    path: of the file.
    data: its bytes.
    budget: of the file.

  Raises:
    ValueError: in one line, for a zip that torch would not write, and as `pickles.read`.
  """
  members = _members(path, budget.file_size)
  found = [name for name in members if name.split("/")[-1] == "data.pkl" and name.count("/") < 2]
  if len(found) != 1:
    has = ", ".join(shown(name) for name in list(members)[:3])
    raise ValueError(
      f"it is a zip with {len(found)} data.pkl, so not a file of torch.save; it has {has}, ..."
    )
  root = found[0].removesuffix("data.pkl")
  read = lambda name: _content(data, members[name])
  order = bytes(read(f"{root}byteorder")) if f"{root}byteorder" in members else b"little"
  if order not in (b"little", b"big"):
    raise ValueError(f"its byteorder is {shown(order.decode('latin1'))}, not little or big")
  storages: dict[str, Storage] = {}

  def storage(pid):
    made = pickles.storage_of(pid, storages, swapped=order == b"big")
    name = f"{root}data/{pid[2]}"
    if name not in members:
      raise ValueError(f"storage {shown(pid[2])} is not in the zip")
    if members[name].file_size != made.numel * made.dtype.itemsize:
      raise ValueError(
        f"storage {shown(pid[2])} is said to have {made.numel} {made.dtype}, but "
        f"{members[name].file_size} bytes are there"
      )
    made.read = functools.partial(read, name)
    return made

  return pickles.read(io.BytesIO(bytes(read(found[0]))), budget, persistent=storage)


def _members(path: Path, file_size: int) -> dict[str, zipfile.ZipInfo]:
  """The files in a zip, if they are stored as they are and none overlaps or leaves its folder."""
  try:
    with zip_files.opened(path) as archive:
      members = zip_files.members(archive)
  except ValueError as error:
    raise ValueError(f"it is a broken zip: {' '.join(str(error).split())[:300]}") from None
  total = sum(info.file_size for info in members.values())
  if total > file_size:
    raise ValueError(
      f"the zip says it holds {len(members)} files of {total} bytes, in {file_size}: a bomb"
    )
  for name, info in members.items():
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise ValueError(
        f"{shown(name)} is compressed or encrypted in the zip; torch stores as it is"
      )
  return members


def _content(data: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
  """The bytes of one file in a zip, [n] uint8: a view, checked against the zip's own checksum."""
  header = data[info.header_offset : info.header_offset + LOCAL_HEADER]
  if len(header) < LOCAL_HEADER or not re.match(rb"PK\x03\x04", header):
    raise ValueError(f"{shown(info.filename)} is not where the zip says")
  lengths = np.frombuffer(header, "<u2", 2, 26)
  start = info.header_offset + LOCAL_HEADER + int(lengths.sum())
  if start + info.file_size > len(data):
    raise ValueError(f"{shown(info.filename)} reaches beyond the end of the zip")
  content = np.frombuffer(data, np.uint8, info.file_size, start)
  if zlib.crc32(content) != info.CRC:
    raise ValueError(f"{shown(info.filename)} is damaged: its checksum is another")
  return content
