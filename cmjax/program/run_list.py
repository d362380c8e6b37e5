"""The runs in a folder: which there are, a table of them, and the page that compares them."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from cmjax import pages
from cmjax.base import paths, printable
from cmjax.base.atomic_files import write_text
from cmjax.metrics import scoring
from cmjax.program import run_summaries, score_files
from cmjax.program.run_summaries import Score, Summary
from cmjax.run import comparison_page, pictures
from cmjax.run.live_line import WATCHED

DEPTH = 3  # folders below the one that is given
MOST_RUNS = 12  # with curves and pictures on the page: the newest
FILE = "runs.html"
_SIGNS = frozenset({"config.json", "metrics.jsonl", "checkpoints"})  # of a run
_NO_RUNS = frozenset({"samples", "cards", "tensorboard", "snapshots", "posthoc"})


class Found(NamedTuple):
  """The runs of a folder.

  Attributes:
    folder: where they are.
    runs: {name: summary} by name, which is the way from the folder.
    broken: {name: why it cannot be read}.
  """

  folder: epath.Path
  runs: dict[str, Summary]
  broken: dict[str, str]


def find(folder: str | os.PathLike[str]) -> Found:
  """The runs in a folder, and in those below it.

  Raises:
    ValueError: there is no such folder, or no run in it.
  """
  folder = paths.absolute(paths.place(folder, "FOLDER"))
  if not folder.is_dir():
    raise ValueError(f"There is no folder {folder}. Give the one that the runs are in.")
  runs, broken = {}, {}
  for name, path in sorted(_workdirs(folder, "", DEPTH)):
    try:
      runs[name] = run_summaries.read(path)
    except (ValueError, OSError) as error:
      broken[name] = str(error)
  if not runs and not broken:
    raise ValueError(
      f"No run in {folder}, nor {DEPTH} folders below it: a run is a folder with a config.json."
    )
  return Found(folder, runs, broken)


def _workdirs(folder: epath.Path, name: str, depth: int) -> Iterator[tuple[str, epath.Path]]:
  inside = {path.name: path for path in folder.iterdir()}
  if _SIGNS & inside.keys():
    yield name or folder.name, folder
    return
  for child, path in inside.items():
    if depth and child not in _NO_RUNS and not child.startswith(".") and path.is_dir():
      yield from _workdirs(path, f"{name}/{child}" if name else child, depth - 1)


def table(found: Found) -> str:
  """The runs for a terminal, one a line; then what could not be read."""
  rows = [{key: _cell(value) for key, value in row.items()} for row in _rows(found.runs)]
  lines = []
  if rows:
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, *rows):
      lines.append("  ".join(f"{row[key]:{width}}" for key, width in widths.items()).rstrip())
  lines += [f"broken: {printable.printable(name)}: {_short(why)}" for name, why in _problems(found)]
  return "\n".join(lines)


def _cell(value: Any) -> str:
  return "-" if value is None else printable.printable(str(value))


def _short(text: str) -> str:
  return printable.printable(" ".join(text.split()))[:300]


def _problems(found: Found) -> list[tuple[str, str]]:
  partly = [(name, why) for name, run in found.runs.items() for why in run.problems]
  return sorted([*found.broken.items(), *partly])


def _rows(runs: dict[str, Summary]) -> list[dict[str, Any]]:
  """A row for each run: what it is, how far it is, what to watch, its best main score."""
  rows = []
  for name, run in runs.items():
    row: dict[str, Any] = {"run": name, "method": run.method, "data": run.data}
    of = "" if run.total_steps is None else f"/{run.total_steps:,}"
    row["steps"] = f"{run.step:,}{of}"
    row["state"] = run.state
    for metric, word in WATCHED:
      value = run.newest(metric)
      row[word] = None if value is None else f"{value:.4g}"
    row["score"] = _best(run.scores)
    rows.append(row)
  return rows


def _best(scores: Sequence[Score]) -> str | None:
  """The best of the first evaluator's main scores, in words."""
  main = [score for score in scores if "/" not in score.name]
  same = [score for score in main if score.name == main[0].name]
  if not same:
    return None
  best = min(same, key=lambda score: score.value)
  nfe = f", NFE {best.nfe}" if best.nfe else ""
  return f"{best.name} {best.value:.4g} ({best.sampler}{nfe})"


# --- the page ---


def write(found: Found, to: str | os.PathLike[str] | None = None) -> epath.Path:
  """Writes the page that compares the runs; returns its path.

  Args:
    found: the runs.
    to: the file; None: runs.html in their folder.
  """
  path = paths.place(to, "--out") if to else found.folder / FILE
  newest = sorted(found.runs, key=lambda name: -found.runs[name].ended)[:MOST_RUNS]
  shown = {name: run for name, run in found.runs.items() if name in newest}
  notes = []
  if len(shown) < len(found.runs):
    notes.append(
      f"Curves, pictures and configs are of the {len(shown)} newest of {len(found.runs)} runs. "
      "Give a folder with fewer runs to see others."
    )
  rows, warnings = _scores(shown)
  text = comparison_page.page(
    heading=f"Runs in {found.folder.name or found.folder}",
    runs=[_shown(name, run) for name, run in shown.items()],
    table=_rows(found.runs),
    scores=rows,
    differences=_differences(shown),
    notes=notes,
    warnings=warnings,
    broken=[f"{name}: {_short(why)}" for name, why in _problems(found)],
  )
  try:
    write_text(path, text)
  except OSError as error:
    raise OSError(
      f"{path} could not be written: {error.strerror or error}. Give another place: --out=FILE."
    ) from error
  return path


def _shown(name: str, run: Summary) -> comparison_page.Shown:
  kind = run_summaries.kind(run.method)
  shots = pictures.of_run(run.path, run.step or float("inf"), 0)
  scores = {score.metric for score in run.scores}
  return comparison_page.Shown(name, kind, run.history, scores, shots, pictures.real(run.path))


def _differences(runs: dict[str, Summary]) -> list[dict[str, Any]]:
  if len(runs) < 2:
    return []
  found = pages.differing([run.record for run in runs.values()])
  return [{"key": key, **dict(zip(runs, values, strict=True))} for key, values in found.items()]


def _scores(runs: dict[str, Summary]) -> tuple[list[dict[str, Any]], list[str]]:
  """The scores of all runs as rows, and what of them cannot be compared, and why."""
  rows, warnings = [], []
  names = dict.fromkeys(score.name for run in runs.values() for score in run.scores)
  for name in names:
    having = [
      (run_name, run, score)
      for run_name, run in runs.items()
      for score in run.scores
      if score.name == name
    ]
    value = name.partition("/")[2]
    lower = not value or value in scoring.LOWER_IS_BETTER
    first = having[0]
    for run_name, run, score in sorted(having, key=lambda h: h[2].value if lower else -h[2].value):
      rows.append(
        {
          "score": name,
          "run": run_name,
          "sampler": score.sampler,
          "average": score.average,
          "NFE": score.nfe,
          "step": score.step,
          "value": score.value,
          **score_files.of_floor(name, score.value, score.floor),
        }
      )
      reasons = run_summaries.why_incomparable(first[1], run, first[2], score)
      if reasons and run_name != first[0]:
        warnings.append(
          f"{name} of {run_name} cannot be compared with that of {first[0]} (A is {first[0]}, B is "
          f"{run_name}): {'; '.join(reasons)}."
        )
  return rows, list(dict.fromkeys(warnings))
