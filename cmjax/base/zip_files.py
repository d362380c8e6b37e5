"""Zip archives that somebody else made: what is in them is checked before it is unpacked.

An archive of a few megabytes can unpack to terabytes, name files outside of its folder, or be
nothing but names. Nothing here writes a file.
"""

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from cmjax.base import limits, safe_names
from cmjax.base.printable import shown

# Those whose reader unpacks no more than it is asked for.
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
# What Python raises on a file that is no archive, or only a part of one.
DAMAGED = (
  zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError,
  RuntimeError, OverflowError, IndexError,
)  # fmt: skip
_END, _END_64, _LOCATOR, _ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_TAIL = 22 + 2**16  # bytes from the end in which the end of the directory lies


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Turns what a damaged archive raises into a ValueError with the reason alone."""
  try:
    yield
  except DAMAGED as error:
    raise ValueError(str(error) or type(error).__name__) from error


def opened(file: Any) -> zipfile.ZipFile:
  """The archive at a path, or in an open file, if it has no more entries than the limit.

  Raises:
    ValueError: it is no archive, or has too many files.
  """
  with explained():
    if isinstance(file, str | os.PathLike):
      with open(file, "rb") as stream:
        check_directory(stream)
    else:
      check_directory(file)
      file.seek(0)
    return zipfile.ZipFile(file)


def check_directory(stream: Any) -> None:
  """Raises ValueError for an archive of too many files.

  They are counted where `zipfile` will look, which makes an object of each: ten times its bytes.
  """
  size = stream.seek(0, os.SEEK_END)
  start = stream.seek(max(0, size - _TAIL))
  tail = stream.read(_TAIL)
  plain = len(tail) >= 22 and tail[-22:].startswith(_END) and tail.endswith(b"\0\0")
  end = len(tail) - 22 if plain else tail.rfind(_END)
  if end < 0 or end + 22 > len(tail):
    return  # `zipfile` says that it is no archive
  (num_bytes,) = struct.unpack_from("<L", tail, end + 12)
  before, locator = start + end, tail[max(0, end - 20) : end]
  if locator.startswith(_LOCATOR):
    before = max(0, before - 76)
    stream.seek(before)
    record = stream.read(56)
    if record.startswith(_END_64) and len(record) == 56:
      (num_bytes,) = struct.unpack_from("<Q", record, 40)
  count, position = 0, max(0, before - num_bytes)
  stream.seek(position)
  while position < before and (piece := stream.read(min(2**24, before - position))):
    count, position = count + piece.count(_ENTRY), position + len(piece)
  limits.check("zip_entries", count, "the archive has too many files")


def members(archive: zipfile.ZipFile, *, windows: bool = False) -> dict[str, zipfile.ZipInfo]:
  """The files in an archive by their safe names, in its order.

  Args:
    archive: of `opened`.
    windows: take a backslash for a slash, as some tools of Windows write it, and do not refuse it.

  Raises:
    ValueError: a name leads out of the archive's folder or is there twice, an entry is a link or a
      device, or files share their bytes.
  """
  found: dict[str, zipfile.ZipInfo] = {}
  for info, name, is_folder in _entries(archive, windows):
    if is_folder:
      continue
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG):
      raise ValueError(f"{shown(name)} is a link, or no regular file: pack the file itself")
    if name in found:
      raise ValueError(f"it has {shown(name)} twice")
    found[name] = info
  there, size = sum(info.compress_size for info in found.values()), _size(archive)
  if size is not None and there > size:
    raise ValueError(f"its files have {there} packed bytes, but it has {size}: they overlap")
  return found


def folders(archive: zipfile.ZipFile, *, windows: bool = False) -> list[str]:
  """The safe names of the folders that have an entry of their own; empty ones have no other."""
  return [name for _, name, is_folder in _entries(archive, windows) if is_folder]


def _entries(
  archive: zipfile.ZipFile, windows: bool
) -> Iterator[tuple[zipfile.ZipInfo, str, bool]]:
  """Each entry with its safe name, and whether it is a folder."""
  for info in archive.infolist():
    name = info.orig_filename  # of the other Python cuts off all from its first NUL
    if windows:
      name = name.replace("\\", "/")
    yield info, safe_names.relative(name), info.is_dir() or name.endswith("/")


def _size(archive: zipfile.ZipFile) -> int | None:
  file: Any = archive.fp
  if file is None:
    return None
  with contextlib.suppress(OSError, ValueError):
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(before)
    return size
  return None


def check_ratio(info: zipfile.ZipInfo) -> None:
  """Raises ValueError for a file that would unpack to far more than it is, or by an old method."""
  name = shown(info.filename)
  if info.compress_type not in METHODS:
    raise ValueError(
      f"{name} is packed by method {info.compress_type}, which is not read here: pack the archive "
      f"again, {' or '.join(METHODS.values())}"
    )
  packed, unpacked = info.compress_size, info.file_size
  limits.check_ratio(packed, unpacked, f"{name} would unpack {packed} bytes to {unpacked}")


def read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int | None = None) -> bytes:
  """A small file, whole, or the first `size` bytes of a file.

  Raises:
    ValueError: it is damaged, or would unpack to more than the limits.
  """
  check_ratio(info)
  if size is None:
    limits.check("zip_member_bytes", info.file_size, f"{shown(info.filename)} has too many bytes")
  with explained(), archive.open(info) as file:
    return file.read(-1 if size is None else size)
