"""The arrays of MNIST and its kin: IDX files, packed by gzip.

An IDX file is two zero bytes, a type, the number of axes, their lengths as big-endian uint32, and
then the values (yann.lecun.com/exdb/mnist). Only unsigned bytes are read here.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from cmjax.base import limits

UINT8 = 0x08
MAX_AXES = 4


def read(path: str | os.PathLike[str]) -> np.ndarray:
  """The array of an .idx.gz, uint8.

  Raises:
    ValueError: it is damaged, of another type, or has other bytes than its header says.
  """
  try:
    with gzip.open(path) as file:
      head = file.read(4)
      if len(head) < 4 or head[:3] != bytes([0, 0, UINT8]) or not 1 <= head[3] <= MAX_AXES:
        raise ValueError(f"it begins with {head.hex() or 'nothing'}: no IDX file of bytes")
      shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
      size = math.prod(shape)
      packed = Path(path).stat().st_size
      limits.check_ratio(packed, size, f"it would unpack {packed} bytes to {size}")
      data = file.read(size + 1)
  except (OSError, EOFError, zlib.error, struct.error) as error:
    raise ValueError(f"Cannot read {path}: {error}") from error
  except ValueError as error:
    raise ValueError(f"Cannot read {path}: {error}") from None
  if len(data) != size:
    raise ValueError(f"Cannot read {path}: its header speaks of {size} bytes, it has other.")
  return np.frombuffer(data, np.uint8).reshape(shape)
