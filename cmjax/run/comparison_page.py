"""One HTML page that compares runs: a table, scores, pictures side by side, curves, configs."""

import html
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmjax.run import html_parts, pictures, sentences
from cmjax.run.charts import Series, chart, in_order, title

_LEFT_OUT = ("wall_sec", "steps_per_sec", "slowest_host")
_COUNTS = ("skipped", "spikes", "rolled_back", "nonfinite")


class Shown(NamedTuple):
  """A run on the page.

  Attributes:
    name: by which the page calls it.
    kind: of its method, as in `sentences`.
    history: {name: series}.
    scores: the names in it that are scores.
    shots: {name: pictures}, of which the last is shown.
    real: a picture of its training images; None without.
  """

  name: str
  kind: str
  history: Mapping[str, Series]
  scores: Collection[str]
  shots: Mapping[str, pictures.Shots]
  real: bytes | None


def page(
  *,
  heading: str,
  runs: Sequence[Shown],
  table: Sequence[Mapping[str, Any]],
  scores: Sequence[Mapping[str, Any]],
  differences: Sequence[Mapping[str, Any]],
  notes: Sequence[str],
  warnings: Sequence[str],
  broken: Sequence[str],
) -> str:
  """The HTML text, from values alone: reads and writes no file.

  Args:
    heading: of the page.
    runs: those with curves and pictures.
    table: a row for each run.
    scores: a row for each score.
    differences: a row for each key in which the configs differ, a column for each run.
    notes: paragraphs at the top.
    warnings: below the scores: what cannot be compared.
    broken: what could not be read.
  """
  told, unread = (html_parts.paragraphs(texts, "bad") for texts in (warnings, broken))
  body = html_parts.sections(
    (
      ("Runs", _card(table)),
      ("What could not be read", unread),
      ("Scores", _card(scores) + told if scores else ""),
      ("Pictures", "".join(_pictures(runs))),
      ("Curves", _curves(runs)),
      ("What differs in the configs", _card(differences, "config")),
    )
  )
  return html_parts.document(heading, html_parts.paragraphs(notes), body)


def _card(rows: Sequence[Mapping[str, Any]], style: str = "") -> str:
  return f'<div class="card scroll {style}">{html_parts.table(rows)}</div>' if rows else ""


def _pictures(runs: Sequence[Shown]) -> Iterator[str]:
  """A card for each name of pictures, with a figure of each run that has it."""
  for name in dict.fromkeys(name for run in runs for name in run.shots):
    figures = []
    real = next((run.real for run in runs if run.real and name in run.shots), None)
    if real:
      figures.append(html_parts.figure(real, "training images", "<b>training images</b>"))
    for run in runs:
      if name in run.shots:
        step, png = run.shots[name][-1]
        caption = f"<b>{html.escape(run.name)}</b>, step {step:,}"
        figures.append(html_parts.figure(png, f"{run.name}, {name}, step {step}", caption))
    yield (
      f'<div class="card"><h3>{html.escape(name)}</h3>'
      f'<div class="pictures many">{"".join(figures)}</div></div>'
    )


def _curves(runs: Sequence[Shown]) -> str:
  """A chart for each curve that runs can be compared by, with a line of each that has it."""
  lines: dict[str, dict[str, Series]] = {}
  for run in runs:
    for name, series in run.history.items():
      if name in run.scores or ("/" not in name and name not in _LEFT_OUT):
        lines.setdefault(name, {})[run.name] = series
  lines = {name: each for name, each in lines.items() if _says_something(name, each)}
  ends = [int(steps[i]) for each in lines.values() for steps, _ in each.values() for i in (0, -1)]
  kinds = {run.kind for run in runs}
  about = sentences.curves(kinds.pop()) if len(kinds) == 1 else sentences.of_several()
  scores = sorted(name for name in lines if "/" in name)
  cards = "".join(
    chart(title(name), lines[name], False, (min(ends), max(ends)), about=about.get(name, ""))
    for name in in_order(lines, scores)
  )
  return f'<div class="charts">{cards}</div>' if cards else ""


def _says_something(name: str, lines: Mapping[str, Series]) -> bool:
  """Whether a chart has more than the tables: a line that is no point, a count that is not 0."""
  if all(len(steps) < 2 for steps, _ in lines.values()):
    return False
  return name not in _COUNTS or any(values.any() for _, values in lines.values())
