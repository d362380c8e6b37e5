"""Arrays of .npz files: nothing pickled is executed, and one error for all that can be wrong."""

import contextlib
import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from cmjax.base import zip_files
from cmjax.base.printable import printable, shown

# What NumPy raises on a file that is no archive of arrays, or only the start of one.
DAMAGED = (
  OSError,
  EOFError,
  ValueError,
  SyntaxError,
  KeyError,
  MemoryError,  # a shape that is none
  OverflowError,
  RuntimeError,  # a member that says it is encrypted; NotImplementedError: or compressed otherwise
  struct.error,
  tokenize.TokenError,
  zlib.error,
  zipfile.BadZipFile,
  AttributeError,
  TypeError,
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Arrays(Mapping[str, np.ndarray]):
  """The arrays of an open .npz by name; what each says of itself is checked before it is read."""

  def __init__(self, file: NpzFile):
    assert file.zip is not None, "it is open"
    self._file, self._zip = file, file.zip
    self._members: dict[str, zipfile.ZipInfo] = {}
    for info in self._zip.infolist():
      name = info.filename.removesuffix(".npy")
      if name in self._members:
        raise ValueError(f"it has {shown(name)} twice")
      self._members[name] = info

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._members:
      raise KeyError(f"{name} is not a file in the archive")
    if not self._members[name].filename.endswith(".npy"):
      raise ValueError(f"{shown(name)} is no array: it does not end with .npy")
    _check(self._zip, self._members[name])
    return self._file[name]

  def __contains__(self, name: object) -> bool:
    return name in self._members

  def __iter__(self) -> Iterator[str]:
    return iter(self._members)

  def __len__(self) -> int:
    return len(self._members)


def _check(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
  zip_files.check_ratio(info)
  with archive.open(info) as member:
    _check_header(member, info.file_size, shown(info.filename))


def _check_header(member: Any, size: int, name: str) -> None:
  """Raises ValueError where a header speaks of another number of bytes than there are."""
  version = npy.read_magic(member)
  if version not in _HEADERS:
    raise ValueError(f"{name} is of NumPy's format {version}, not 1.0 or 2.0")
  shape, _, dtype = _HEADERS[version](member)
  there = size - member.tell()
  if dtype.hasobject:
    return  # which NumPy refuses
  says = f"{name} says that it is {dtype.str[:20]} {shown(shape)}"
  if any(type(n) is not int or n < 0 for n in shape):
    raise ValueError(f"{says}, which is no shape")
  needed = math.prod(shape) * dtype.itemsize
  # Of nothing at all there can be 2^60 rows.
  if needed != there or dtype.itemsize == 0 or max(shape, default=0) > size:
    raise ValueError(f"{says}, {shown(needed)} bytes, but {there} are there")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
  """Makes one kind of error of all that NumPy and the reader of archives raise."""
  try:
    yield
  except DAMAGED as error:
    # The quotes that str() puts around a KeyError's words are not for people.
    reason = error.args[0] if isinstance(error, KeyError) else str(error)
    raise ValueError(printable(str(reason)) or type(error).__name__) from error


def array(data: bytes) -> np.ndarray:
  """The array that the bytes of an .npy hold.

  Raises:
    ValueError: with the reason alone, for bytes that are none, of pickled objects, or that say they
      are more than they are.
  """
  with _explained():
    _check_header(io.BytesIO(data), len(data), "it")
    return np.load(io.BytesIO(data), allow_pickle=False)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Arrays]:
  """The arrays of an .npz by their names; each is read when it is asked for.

  Raises:
    ValueError: with the reason alone, for a file that is missing, damaged, one array, of pickled
      objects, or that says it is larger than it is: on entering, or where an array is read.
  """
  # Opened here, as np.load leaves a file open that turns out to be damaged.
  with _explained(), Path(path).open("rb") as stream:
    zip_files.check_directory(stream)
    stream.seek(0)
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, NpzFile):
      raise ValueError("it is one array, not an .npz of many")
    with file:
      yield Arrays(file)
