"""Arrays of .npz files: nothing pickled is executed, and one error for all that can be wrong."""

import contextlib
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

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


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
  """The arrays of an .npz by their names; each is read when it is asked for.

  Raises:
    ValueError: with the reason alone, for a file that is missing, damaged, one array, or of pickled
      objects: on entering, or where an array is read.
  """
  try:
    # Opened here, as np.load leaves a file open that turns out to be damaged.
    with Path(path).open("rb") as stream:
      file = np.load(stream, allow_pickle=False)
      if not isinstance(file, NpzFile):
        raise ValueError("it is one array, not an .npz of many")
      with file:
        yield file
  except DAMAGED as error:
    # The quotes that str() puts around a KeyError's words are not for people.
    raise ValueError(error.args[0] if isinstance(error, KeyError) else str(error)) from error
