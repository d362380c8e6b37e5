"""Digests: of files and arrays, by parts of what is large; and of small files that say their own.

A file of JSON that a later program believes holds `sha256`, the digest of everything else in it. A
change by hand, or by a disk, is then found when the file is read.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from cmjax.base import stores

SEAL = "sha256"
BLOCK = 2**16  # bytes
MOST_BLOCKS = 16  # of one file, or of one array
MOST_FILES = 256


def of_json(content: Any) -> str:
  """The sha256 of plain data, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """The content with its own digest beside it; a tuple is a list, as it comes back from a file."""
  plain = {key: value for key, value in content.items() if key != SEAL}
  return {**json.loads(json.dumps(plain)), SEAL: of_json(plain)}


def is_whole(content: Mapping[str, Any]) -> bool | None:
  """Whether the content is as `sealed` left it; None: it says no digest, so that is not known."""
  if SEAL not in content:
    return None
  return content[SEAL] == of_json({k: v for k, v in content.items() if k != SEAL})


def of_files(paths: Iterable[Any], root: Any = None) -> str:
  """The sha256 of names, sizes and content of files; of a large one 16 blocks, evenly spaced.

  Args:
    paths: the files. Of more than 256 the names and sizes count of all, the content of 256.
    root: names count from here; None: they do not count.
  """
  paths, whole = sorted(paths), hashlib.sha256()
  chosen = set(_spread(len(paths), MOST_FILES).tolist())
  for i, path in enumerate(paths):
    size = stores.size(path)
    name = path.relative_to(root).as_posix() if root else ""
    whole.update(json.dumps([name, size]).encode())
    if i in chosen:
      with path.open("rb") as file:
        for block in _spread(-(-size // BLOCK), MOST_BLOCKS).tolist():
          file.seek(block * BLOCK)
          whole.update(file.read(BLOCK))
  return whole.hexdigest()


def of_folder(folder: epath.Path) -> str:
  """`of_files`, of all files below a folder, by their names in it."""
  return of_files((folder / name for name in stores.files(folder)), folder)


def of_arrays(arrays: Mapping[str, Any]) -> str | None:
  """The sha256 of arrays by their names; of a large one 2^17 values, evenly spaced.

  None where another process has a part of one.
  """
  whole = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      return None
    values = np.asarray(array)
    whole.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
    values = values.reshape(-1)
    whole.update(np.ascontiguousarray(values[_spread(len(values), 2**17)]).tobytes())
  return whole.hexdigest()


def _spread(num: int, limit: int) -> np.ndarray:
  """At most `limit` indices below num, evenly spaced, the first and the last among them."""
  if num <= limit:
    return np.arange(num)
  return np.arange(limit) * (num - 1) // (limit - 1)
