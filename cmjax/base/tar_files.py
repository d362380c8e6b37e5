"""Tar archives, packed by gzip, that somebody else made: read as a stream, within limits.

A stream of a few kilobytes can unpack to terabytes. Nothing here writes a file: what is wanted of
an archive is named, and comes back as bytes.
"""

import contextlib
import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from cmjax.base import limits, safe_names
from cmjax.base.printable import shown

# What Python raises on a file that is no archive, or only a part of one.
DAMAGED = (
  tarfile.TarError, zlib.error, struct.error, OSError, EOFError, RuntimeError, OverflowError,
  IndexError, UnicodeError,
)  # fmt: skip


def read(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, bytes]:
  """{name: bytes} of these files of a .tar.gz; reading ends with the last of them.

  Args:
    path: of the archive.
    names: of the files that are wanted, with slashes.

  Raises:
    ValueError: it is damaged, lacks a file or has it twice, has an entry that is a link or leads
      out of its folder, or unpacks to more than the limits.
  """
  found: dict[str, bytes] = {}
  with _explained(), gzip.open(path) as packed:
    stream = io.BufferedReader(_Bounded(packed, Path(path).stat().st_size))
    with stream, tarfile.open(fileobj=stream, mode="r|") as archive:
      for name, entry in _files(archive):
        if name in names and name in found:
          raise ValueError(f"it has {shown(name)} twice")
        if name not in names:
          continue
        limits.check("zip_member_bytes", entry.size, f"{shown(name)} has too many bytes")
        content = archive.extractfile(entry)
        assert content is not None, "it is a regular file"
        found[name] = content.read()
        if len(found) == len(set(names)):
          return found
  missing = sorted(set(names) - set(found))
  raise ValueError(f"it has no {', '.join(missing)}")


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
  """The regular files in an archive, by their safe names."""
  for count, entry in enumerate(archive, start=1):
    limits.check("zip_entries", count, "the archive has too many files")
    name = safe_names.relative(entry.name)
    if entry.isdir():
      continue
    if not entry.isreg() or entry.issparse():
      raise ValueError(f"{shown(name)} is a link, or no regular file")
    yield name, entry


@contextlib.contextmanager
def _explained() -> Iterator[None]:
  """Turns what a damaged archive raises into a ValueError with the reason alone."""
  try:
    yield
  except DAMAGED as error:
    raise ValueError(str(error) or type(error).__name__) from error


class _Bounded(io.RawIOBase):
  """A stream that unpacks to no more than the limits allow for its packed bytes."""

  def __init__(self, stream: gzip.GzipFile, packed: int):
    self._stream, self._packed, self._count = stream, packed, 0

  def readable(self) -> bool:
    """It is."""
    return True

  def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Fills the buffer, or a part of it; how many bytes."""
    data = self._stream.read(len(buffer))
    self._count += len(data)
    said = f"it would unpack {self._packed} bytes to {self._count}"
    limits.check_ratio(self._packed, self._count, said)
    buffer[: len(data)] = data
    return len(data)
