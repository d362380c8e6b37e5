"""What a training says when it ends: the scores, where everything is, and what to do next."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from cmjax import pages
from cmjax.base import paths, stores
from cmjax.base.flat_dicts import flat
from cmjax.experiment import Experiment
from cmjax.program import score_files
from cmjax.run import page, pictures

MOST_FLAGS = 6  # in a command that is proposed: with more it is another experiment
# What a student must share with its teacher.
_SHARED = ("data", "net", "sigma_data")
# What a student adds to the network of a teacher, or reads in its own way.
_OWN = (
  "net.dtype",
  "net.dropout",
  "net.dropout_resolution",
  "net.label_dropout",
  "data.flip",
  "net.remat",
  "net.attention",
)


def said(exp: Experiment, workdir: str | os.PathLike[str], scores: Mapping[str, float]) -> str:
  """The last words of a training that is done."""
  where = paths.place(workdir, "workdir")
  lines = [f"Done: step {exp.run.total_steps:,} of {exp.run.total_steps:,}."]
  if table := score_files.rows(exp, scores):
    lines += ["", *_table(table), ""]
  lines += [
    f"Samples:     {where / pictures.FOLDER}",
    f"Report:      {where / page.FILE}",
    f"Checkpoint:  {where / 'checkpoints' / str(exp.run.total_steps)}",
  ]
  return "\n".join([*lines, "", "Next:", *(f"  {line}" for line in _next(exp, workdir))])


def _table(rows: list[dict[str, Any]]) -> list[str]:
  columns = {
    "score": "score",
    "sampler": "sampler",
    "average": "average",
    "NFE": "NFE",
    "value": "value",
    "floor": "held out",
  }
  cells = [list(columns.values())]
  for row in rows:
    values = [row[key] for key in columns]
    cells.append([f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v)
                  for v in values])  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in cells
  ]


def _next(exp: Experiment, workdir: str | os.PathLike[str]) -> list[str]:
  """Commands: to distil a teacher; to draw samples and score them."""
  name = shlex.quote(os.fspath(workdir))
  lines = []
  if exp.method.name == "diffusion":
    lines = [
      "# distil this teacher into a model that draws in one or two steps",
      distil(exp.record, workdir)
      or "# write a page of your own for that: no page of cmjax has this data and network",
    ]
  return [
    *lines,
    "# draw more samples",
    f"cmjax sample --workdir={name}",
    "# score the model again, for example with other samplers",
    f"cmjax evaluate --workdir={name}",
    "# compare the runs beside this one",
    f"cmjax runs {shlex.quote(_parent(workdir))}",
  ]


def _parent(workdir: str | os.PathLike[str]) -> str:
  """The folder that a run is in."""
  place = paths.place(workdir, "workdir")
  return os.fspath(place.parent) if stores.is_remote(place) else str(place.parent)


def distil(record: Mapping[str, Any], workdir: str | os.PathLike[str]) -> str | None:
  """The command that distils a teacher, with the page that fits it best; None without one.

  Args:
    record: the config of the teacher.
    workdir: of the teacher.
  """
  teacher = _shared(record)
  best: tuple[int, str, dict[str, Any]] | None = None
  for name in pages.names():
    if not name.endswith("_scd"):
      continue
    other = _shared(pages.load(name).to_dict())
    if other.keys() != teacher.keys() or other.get("data.name") != teacher.get("data.name"):
      continue
    flags = {key: teacher[key] for key in teacher if not _same(other[key], teacher[key])}
    if len(flags) <= MOST_FLAGS and (best is None or len(flags) < best[0]):
      best = len(flags), name, flags
  if best is None:
    return None
  _, name, flags = best
  student = os.path.join(_parent(workdir), name)
  values = {"config": name, "workdir": student}
  values |= {f"config.{key}.workdir": os.fspath(workdir) for key in ("teacher", "init_from")}
  values |= {f"config.{key}": value for key, value in flags.items()}
  return " ".join(["cmjax train", *(_flag(key, value) for key, value in values.items())])


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
  """What teacher and student must have in common, by the way to each value."""
  found = flat({key: config[key] for key in _SHARED if key in config})
  # A source that is not used says nothing of the data.
  used = {"data.name", f"data.{found.get('data.name')}"}
  return {
    key: value
    for key, value in found.items()
    if key not in _OWN and (not key.startswith("data.") or _of(key, used))
  }


def _of(key: str, names: set[str]) -> bool:
  return key in names or ".".join(key.split(".")[:2]) in names


def _same(a: Any, b: Any) -> bool:
  as_tuple = lambda x: tuple(map(as_tuple, x)) if isinstance(x, list | tuple) else x
  return as_tuple(a) == as_tuple(b)


def _flag(key: str, value: Any) -> str:
  if isinstance(value, list | tuple):
    value = ",".join(map(str, value))
  return f"--{key}={shlex.quote(str(value))}"
