"""The history of a run: one JSON object a line, in metrics.jsonl, or in parts where it must be.

Where a place cannot append, as an object store, the lines are in `metrics/000001.jsonl` and on: the
last part is put anew with every line, until it is full. `records` reads both alike.
"""

import json
import os
import re
from typing import Any

from etils import epath

from cmjax.base import json_files, paths
from cmjax.base.atomic_files import replacing

FILE, PARTS = "metrics.jsonl", "metrics"
PART_BYTES = 2**16
_PART = re.compile(r"\d{6,}\.jsonl")


class History:
  """The history of a run that is written: lines are there once `append` returns.

  Args:
    workdir: of the run.
    last_step: records of later steps are dropped, and so is a half-written last line.
    appends: whether the place can append to a file.
  """

  def __init__(self, workdir: str | os.PathLike[str], last_step: int, *, appends: bool):
    self._workdir = paths.place(workdir, "workdir")
    for path in files(self._workdir):
      _truncate(path, last_step)
    self._file, self._lines, self._size, self.closed = None, [], 0, False
    if appends:
      self.name = os.fspath(self._workdir / FILE)
      self._file = open(self.name, "a", encoding="ascii")
    else:
      numbers = [int(path.stem) for path in files(self._workdir) if _PART.fullmatch(path.name)]
      self._number = max(numbers, default=0) + 1
      self.name = os.fspath(self._workdir / PARTS)

  def append(self, record: dict[str, Any]) -> None:
    """Adds a record."""
    line = json.dumps(record, allow_nan=False) + "\n"
    if self._file is not None:
      self._file.write(line)
      self._file.flush()
      return
    self._lines.append(line)
    self._size += len(line)
    folder = self._workdir / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{self._number:06d}.jsonl") as file:
      file.write("".join(self._lines).encode())
    if self._size >= PART_BYTES:
      self._number, self._lines, self._size = self._number + 1, [], 0

  def close(self) -> None:
    """Closes the file; a second call does nothing."""
    self.closed = True
    if self._file is not None:
      self._file.close()


def files(workdir: str | os.PathLike[str]) -> list[epath.Path]:
  """The files that a history is in, in order; those that are there."""
  workdir, found = paths.place(workdir, "workdir"), []
  if (workdir / FILE).exists():
    found.append(workdir / FILE)
  if (workdir / PARTS).is_dir():
    parts = [path for path in (workdir / PARTS).iterdir() if _PART.fullmatch(path.name)]
    found += sorted(parts, key=lambda path: int(path.stem))
  return found


def records(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The records of a run, without a half-written last one; [] if there are none.

  Raises:
    ValueError: for a line before the last of a file that is no record.
  """
  return [record for path in files(workdir) for record in _read(path)]


def _read(path: epath.Path) -> list[dict[str, Any]]:
  lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
  read = []
  for i, line in enumerate(lines):
    try:
      record = json_files.parse(line)
      _ = int(record["step"]), float(record["time"])
    except (ValueError, KeyError, TypeError) as error:
      if i == len(lines) - 1:
        break
      raise ValueError(
        f"{path}: record {i + 1} of {len(lines)} cannot be read ({error!r}). "
        "The file is damaged: remove that line, or move the file away."
      ) from error
    read.append(record)
  return read


def _truncate(path: epath.Path, step: int) -> None:
  """Drops the records of later steps; a part that had no others goes."""
  kept = "".join(json.dumps(r) + "\n" for r in _read(path) if r["step"] <= step).encode()
  if kept == path.read_bytes():
    return
  if not kept and path.name != FILE:
    path.unlink()
    return
  with replacing(path) as file:
    file.write(kept)
