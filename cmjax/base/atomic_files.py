"""Files that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file that takes the place of `path` at the end, so that readers see the old or the new.

  Where writing fails the old one stays, and nothing of the new.
  """
  partial = path.with_name(path.name + ".partial")
  try:
    with open(partial, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_json(path: pathlib.Path, content: Any, *, indent: int | None = 2) -> None:
  """`content` as JSON in the place of `path`, whole or not at all."""
  with replacing(path) as file:
    file.write(json.dumps(content, indent=indent).encode() + b"\n")
