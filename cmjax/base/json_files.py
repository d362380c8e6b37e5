"""JSON that somebody else wrote: bounded in bytes, values and depth, and one error for all faults.

Python's own reader takes 25 times the bytes of a list of empty lists, ends in a RecursionError on
deep nesting, and keeps the last of two values of one key without a word.
"""

import json
import os
import stat
from typing import Any

from cmjax.base import limits
from cmjax.base.printable import shown

PIECE = 2**18  # bytes at a time: a read takes the memory that it is asked for, not what is there


def read(path: Any) -> Any:
  """What a file of JSON holds.

  Args:
    path: a `pathlib.Path`, or one of `etils.epath` in a bucket.

  Raises:
    FileNotFoundError: there is none.
    ValueError: with the reason alone, for what is no JSON, or more than the limits.
  """
  try:  # a pipe, or a device, would be read without an end
    mode = os.stat(path).st_mode
  except OSError:  # such as of a path in a bucket
    mode = stat.S_IFREG
  if not stat.S_ISREG(mode):
    raise ValueError("it is no regular file")
  data = bytearray()
  with path.open("rb") as file:
    while (piece := file.read(PIECE)) and len(data) <= limits.get("json_bytes"):
      data += piece
  return parse(bytes(data))


def parse(data: bytes) -> Any:
  """What bytes of JSON hold.

  Raises:
    ValueError: in one line, as `read`.
  """
  limits.check("json_bytes", len(data), "it has too many bytes of JSON")
  values = data.count(b",") + data.count(b"[") + data.count(b"{")
  limits.check("json_values", values, "it has too many values")
  try:
    found = json.loads(data, object_pairs_hook=_once)
  except RecursionError:
    raise ValueError("it is nested too deep") from None
  _check_depth(found)
  return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise ValueError(f"it has {shown(twice)} twice")
  return found


def _check_depth(root: Any) -> None:
  level, depth = [root], 0
  while level := [value for value in level if isinstance(value, dict | list)]:
    depth += 1
    limits.check("json_depth", depth, "it has objects and lists in each other")
    level = [
      child for value in level for child in (value.values() if isinstance(value, dict) else value)
    ]
