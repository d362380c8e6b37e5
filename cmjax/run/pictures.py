"""The pictures of a run: samples/NAME_STEP.png, and of training images samples/real.png."""

import os
import re

from etils import epath

from cmjax.base import paths

FOLDER = "samples"
REAL = "real.png"  # of training images, to look at beside the samples
MOST_BYTES = 2**25  # of one picture on a page
_PICTURE = re.compile(r"(.+)_(\d{8,})\.png")

Shots = list[tuple[int, bytes]]  # (step, PNG), by rising step


def of_run(workdir: str | os.PathLike[str], last_step: int | float, most: int) -> dict[str, Shots]:
  """{name: pictures} of samples up to a step: `most` of each, evenly spread, and the last."""
  folder = paths.place(workdir, "workdir") / FOLDER
  found: dict[str, list[tuple[int, epath.Path]]] = {}
  for path in folder.iterdir() if folder.is_dir() else ():
    match = _PICTURE.fullmatch(path.name)
    if match and int(match[2]) <= last_step:
      found.setdefault(match[1], []).append((int(match[2]), path))
  return {
    name: [(step, path.read_bytes()) for step, path in _spread(sorted(found[name]), most)]
    for name in sorted(found)
  }


def real(workdir: str | os.PathLike[str]) -> bytes | None:
  """The picture of training images; None where there is none."""
  path = paths.place(workdir, "workdir") / FOLDER / REAL
  return path.read_bytes() if path.is_file() else None


def _spread(items: list, most: int) -> list:
  """At most `most` of the items, evenly spread, and the last one."""
  if len(items) <= most + 1:
    return items
  return [items[round(i * (len(items) - 1) / most)] for i in range(most)] + items[-1:] * bool(items)
