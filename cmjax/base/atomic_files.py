"""Files that are there whole or not at all, whoever else writes them at the same moment.

A file is written under a name of its own beside the target, `NAME.0123456789abcdef.partial`, and
renamed. Its writer holds it by flock(2), so that what a killed one has left can be told from what
is being written just now. In an object store a file is written here first, and put there whole.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from etils import epath

from cmjax.base import stores

_PARTIAL = re.compile(r".+\.[0-9a-f]{16}\.partial")
_NAME_BYTES = 200  # of the target's name in that of its partial file: names end at 255


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """A file that takes the place of `path` at the end, so that readers see the old or the new.

  Where writing fails the old one stays, and nothing of the new. Of several writers at once the one
  that ends last counts.
  """
  if stores.is_remote(path):
    with tempfile.NamedTemporaryFile() as file:
      yield cast(BinaryIO, file)
      file.flush()
      stores.put(file.name, path)
    return
  partial, file = _partial(pathlib.Path(path))
  try:
    with file:
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> None:
  """`content` as JSON in the place of `path`, whole or not at all."""
  write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """`text` as UTF-8 in the place of `path`, whole or not at all."""
  with replacing(path) as file:
    file.write(text.encode())


def append_line(path: str | os.PathLike[str], line: str, *, appends: bool = True) -> None:
  """Adds a line to a file; where a place cannot, the file is written anew. For few short lines.

  Args:
    path: of the file, which may not be there.
    line: without its end.
    appends: whether the place can.
  """
  if appends:
    with open(path, "a", encoding="utf-8") as file:
      file.write(line + "\n")
    return
  target = epath.Path(path)
  before = target.read_text() if target.exists() else ""
  write_text(target, f"{before}{line}\n")


def clear_partials(folder: str | os.PathLike[str]) -> None:
  """Removes what killed writers left in a folder and in those directly below it."""
  if stores.is_remote(folder):
    return
  for pattern in ("*.partial", "*/*.partial"):
    for partial in pathlib.Path(folder).glob(pattern):
      if _PARTIAL.fullmatch(partial.name) and partial.is_file():
        # It is being written, is gone by now, or is where there are no locks: it stays.
        with contextlib.suppress(OSError), partial.open("r+b") as file:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
          partial.unlink()


def _partial(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
  """A new file beside `path`, held by its lock where the file system has locks."""
  name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])
  while True:
    partial = path.with_name(f"{name}.{secrets.token_hex(8)}.partial")
    file = open(partial, "xb")
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    if partial.exists():
      return partial, file
    file.close()  # `clear_partials` came in the moment before the lock
