"""Files that hold tensors and no program: safetensors, and flax's msgpack."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import safetensors

from cmjax.base import json_files, limits
from cmjax.convert import tensors

# flax's extension types of msgpack: an array, and a NumPy scalar.
EXT_ARRAY, EXT_SCALAR = 1, 3
MAX_LEVELS, MAX_LIST = 50, 1000


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors of a .safetensors file by name, and its metadata.

  Raises:
    ValueError: in one line, for a file that is not sound.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
      raise ValueError(f"its header is said to have {length} bytes; at most {size - 8} can be")
    limits.check("safetensors_header_bytes", length, "its header is too long")
    header = file.read(length)
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      json_files.parse(header)  # the library takes the last of two tensors of one name
      return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
  except (safetensors.SafetensorError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"it is no sound safetensors file: {str(error)[:200]}") from None


def read_msgpack(data: bytes) -> Any:
  """Nested dicts of arrays and numbers from `flax.serialization.msgpack_serialize`'s bytes.

  flax's own reader would do, but for a file that means harm: it asks for as much memory as a list
  says it is long.

  Raises:
    ValueError: in one line, for a file that is not sound.
  """
  try:
    found = _unpack(data, ext_hook=_extension)
  except msgpack.StackError:
    raise ValueError("it is no sound msgpack: it is nested too deep") from None
  except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
    said = " ".join(str(error).split())
    raise ValueError(f"it is no sound msgpack: {said[:200]}") from None
  _check_levels(found)
  return found


def _unpack(data: bytes, **kwargs: Any) -> Any:
  limits = dict(max_array_len=MAX_LIST, max_map_len=100 * MAX_LIST, strict_map_key=True)
  return msgpack.unpackb(data, raw=False, **limits, **kwargs)


def _extension(code: int, data: bytes) -> Any:
  if code not in (EXT_ARRAY, EXT_SCALAR):
    raise ValueError(f"extension type {code}, which is none of flax's arrays")
  parts = _unpack(data)
  if type(parts) is not list or len(parts) != 3 or type(parts[0]) is not list:
    raise ValueError("an array is not (shape, dtype, bytes)")
  shape, dtype, raw = parts
  return tensors.from_bytes(raw, dtype, tuple(shape))


def _check_levels(root: Any) -> None:
  level = [root]
  for _ in range(MAX_LEVELS):
    level = [
      child
      for value in level
      if isinstance(value, dict | list)
      for child in (value.values() if isinstance(value, dict) else value)
    ]
    if not level:
      return
  raise ValueError(f"it is nested more than {MAX_LEVELS} deep")
