"""A run read back: its history, and one HTML page that shows it (scores, samples, curves, config).

The page is one file with inline CSS, SVG and pictures: no script, no network, light and dark.
`writer` writes what is read here.
"""

import datetime
import html
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cmjax.base import paths
from cmjax.base.atomic_files import replacing
from cmjax.run import checkpoint, html_parts, pictures, sentences
from cmjax.run.charts import Series, chart, groups, number
from cmjax.run.history import records

FILE = "report.html"
_FAULTS = ("skipped", "rolled_back", "spikes")  # which are shown where there are any
_MAX_PICTURES = 12  # of one name, and the last
_PART_COLOURS = {
  "steps": "#10b981",
  "data": "#f97316",
  "saves": "#3b82f6",
  "evaluations": "#a855f7",
  "compiling": "#eab308",
  "start": "#64748b",
  "lost": "#ef4444",
  "away": "#a8a29e",
}


class Told(NamedTuple):
  """What a program tells of a run beside what is in its files.

  Attributes:
    kind: of the method, `sentences.CONSISTENCY` or `DIFFUSION`; "" of another.
    scores: {group of curves: what the score is}; their charts come first.
    about: {group of curves: a sentence} of others.
    terms: (name, what it is) under the table of scores.
    fixed: {name of a curve: value} of what is drawn as a level line, as the teacher's score.
    notes: paragraphs at the top.
  """

  kind: str = ""
  scores: Mapping[str, str] = {}
  about: Mapping[str, str] = {}
  terms: Sequence[tuple[str, str]] = ()
  fixed: Mapping[str, float] = {}
  notes: Sequence[str] = ()


NOTHING = Told()


def read_metrics(workdir: str | os.PathLike) -> dict[str, Series]:
  """The history of a run, name -> (steps `[n]` int64, values `[n]` float64), by rising step.

  Of several values with the same name and step the last written one counts. A half-written last
  line is left out. A run without a history gives an empty dict.

  Raises:
    ValueError: for a line before the last that is no record: the file is damaged.
  """
  return to_series(records(workdir))


def to_series(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
  """The records of a run as series, see `read_metrics`."""
  found: dict[str, dict[int, float]] = {}
  for line in lines:
    for name, value in line.items():
      if name not in ("step", "time"):
        found.setdefault(name, {})[line["step"]] = float(value)
  return {
    name: (np.array(sorted(at), np.int64), np.array([at[s] for s in sorted(at)], np.float64))
    for name, at in found.items()
  }


def report(
  workdir: str | os.PathLike,
  *,
  title: str,
  config: Mapping[str, Any],
  scores: Sequence[Mapping[str, Any]],
  told: Told = NOTHING,
) -> epath.Path:
  """Writes workdir/report.html: one file that needs nothing else, and no network, to be read.

  Args:
    workdir: of a `Reporter`; its history and samples may be short or missing.
    title: the heading.
    config: nested dicts; shown in full.
    scores: the rows of a table; the columns are their keys, in order of appearance.
    told: what the program knows beside.

  Returns:
    The path of the page.
  """
  workdir = paths.place(workdir, "workdir")
  lines = records(workdir)
  last_step = max((line["step"] for line in lines), default=math.inf)
  text = page(
    title=title,
    history=to_series(lines),
    shots=pictures.of_run(workdir, last_step, _MAX_PICTURES),
    real=pictures.real(workdir),
    times=[line["time"] for line in lines],
    scores=scores,
    config=config,
    told=told,
    versions=versions(),
  )
  workdir.mkdir(parents=True, exist_ok=True)
  with replacing(workdir / FILE) as file:
    file.write(text.encode())
  return workdir / FILE


def versions() -> dict[str, str]:
  """Of Python, the platform and the libraries that numbers depend on."""
  found = {"python": platform.python_version(), "platform": platform.platform()}
  libraries = ("cmjax", "jax", "jaxlib", "flax", "optax", "numpy")
  known = {name: checkpoint.version(name) for name in libraries}
  return found | {name: version for name, version in known.items() if version != checkpoint.ABSENT}


def page(
  *,
  title: str,
  history: Mapping[str, Series],
  shots: Mapping[str, pictures.Shots],
  real: bytes | None,
  times: Sequence[float],
  scores: Sequence[Mapping[str, Any]],
  config: Mapping[str, Any],
  told: Told,
  versions: Mapping[str, str],
) -> str:
  """The HTML text of `report`, from values alone: reads and writes no file.

  Args:
    title: the heading.
    history: as from `read_metrics`.
    shots: name -> (step, PNG bytes), by rising step.
    real: PNG bytes of training images; None without.
    times: Unix seconds of the records, for the dates and the duration.
    scores: rows of a table.
    config: nested dicts.
    told: what the program knows beside.
    versions: package -> version.
  """
  table = f'<div class="card scroll">{html_parts.table(scores)}</div>' if scores else ""
  body = html_parts.sections(
    (
      ("Scores", table + (html_parts.definitions(told.terms) if scores else "")),
      ("Samples", _samples(shots, real)),
      ("Curves", _curves(history, told)),
      ("Time", _time(history)),
      ("Configuration", _config(config)),
      ("Versions", f'<div class="card scroll config">{html_parts.pairs(versions.items())}</div>'),
    )
  )
  notes = [*told.notes, *([sentences.LOOK_AT[told.kind]] if told.kind in sentences.LOOK_AT else [])]
  if not history:
    notes.append("No metrics have been recorded yet.")
  text = html_parts.paragraphs(notes)
  return html_parts.document(title, f"{_summary(history, times, config)}{text}", body)


def chart_page(
  title: str, card: str, rows: Sequence[Mapping[str, Any]], notes: Iterable[str]
) -> str:
  """The HTML text of a page of one chart (`charts.chart`), and the table of its numbers."""
  table = f'<div class="card scroll">{html_parts.table(rows)}</div>'
  body = f'<section><div class="charts">{card}</div></section><section>{table}</section>'
  return html_parts.document(title, html_parts.paragraphs(notes), body)


def _steps(history: Mapping[str, Series]) -> tuple[int, int]:
  """The first and the last step: all charts share them, so that they can be read side by side."""
  ends = [int(steps[i]) for steps, _ in history.values() for i in (0, -1)]
  return (min(ends), max(ends)) if ends else (0, 0)


def _summary(history, times: Sequence[float], config: Mapping[str, Any]) -> str:
  tiles = []
  if history:
    total = config.get("total_steps")
    of = f"of {total:,}" if isinstance(total, int) else ""
    tiles.append(("Steps", f"{_steps(history)[1]:,}", of))
  when = ""
  if times:
    first, last = (
      datetime.datetime.fromtimestamp(s, datetime.UTC) for s in (min(times), max(times))
    )
    when = f'<div class="soft">{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC</div>'
    duration = datetime.timedelta(seconds=round(max(times) - min(times)))
    tiles.append(("Time", str(duration), "first to last record"))
  for name, label, pick, hint in (
    ("images_per_sec", "Images per second", np.nanmedian, "median"),
    ("goodput/steps", "Goodput", lambda v: v[-1], "share of wall time in steps"),
    ("mfu", "MFU", np.nanmedian, "share of the chips' peak, median"),
    ("tangent_norm", "Tangent norm", lambda v: v[-1], "last"),
    ("F_error", "F error", lambda v: v[-1], "last"),
    ("skipped", "Skipped steps", np.nanmax, "not finite"),
    ("rolled_back", "Roll backs", np.nanmax, "to a checkpoint"),
    ("spikes", "Spikes", np.nanmax, "of a sitting"),
  ):
    if name in history and not np.isnan(history[name][1]).all():
      value = pick(history[name][1])
      if value or name not in _FAULTS:
        tiles.append((label, number(value), hint))
  cells = "".join(
    f'<div class="card"><span class="soft">{label}</span><b>{value}</b>'
    f'<span class="soft">{hint}</span></div>'
    for label, value, hint in tiles
  )
  return f'{when}<div class="tiles">{cells}</div>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _config(config: Mapping[str, Any]) -> str:
  if not config:
    return ""
  items = list(_flat(config))
  half = (len(items) + 1) // 2
  cards = (html_parts.pairs(part) for part in (items[:half], items[half:]) if part)
  return f'<div class="two config">{"".join(f"<div class=card>{c}</div>" for c in cards)}</div>'


def _curves(history: Mapping[str, Series], told: Told) -> str:
  ends = _steps(history)
  level = {name: (np.array(ends), np.array([value, value])) for name, value in told.fixed.items()}
  about = sentences.curves(told.kind) | dict(told.about) | dict(told.scores)
  charts = "".join(
    chart(g.title, g.lines, g.ordered, ends, about=about.get(g.key, ""))
    for g in groups({**history, **level}, first=tuple(told.scores))
  )
  return f'<div class="charts">{charts}</div>' if history else ""


def _samples(shots: Mapping[str, pictures.Shots], real: bytes | None) -> str:
  """The newest of each sampler beside training images, and below how each has changed."""
  if not shots:
    return ""
  newest = [html_parts.figure(real, "training images", "<b>training images</b>")] if real else []
  for name, taken in shots.items():
    step, png = taken[-1]
    caption = f"<b>{html.escape(name)}</b>, step {step:,}"
    newest.append(html_parts.figure(png, f"{name}, step {step}", caption))
  past = "".join(_past(name, taken[:-1]) for name, taken in shots.items() if taken[:-1])
  return f'<div class="card pictures">{"".join(newest)}</div>{past}'


def _past(name: str, taken: pictures.Shots) -> str:
  figures = "".join(
    html_parts.figure(png, f"{name}, step {step}", f"step {step:,}") for step, png in taken
  )
  head = f"<summary>Earlier: {html.escape(name)}</summary>"
  return f'<details class="card" open>{head}<div class="past">{figures}</div></details>'


def _time(history: Mapping[str, Series]) -> str:
  """Where the time went: a bar, and a row for each part."""
  if "wall_sec" not in history:
    return ""
  whole = float(history["wall_sec"][1][-1])
  shares = {
    part: float(history[f"goodput/{part}"][1][-1])
    for part in sentences.PARTS
    if f"goodput/{part}" in history
  }
  bar = "".join(
    f'<i style="width:{100 * share:.2f}%;background:{_PART_COLOURS[part]}"></i>'
    for part, share in shares.items()
    if share > 0
  )
  rows = "".join(
    f'<tr><td><i class="spot" style="background:{_PART_COLOURS[part]}"></i></td>'
    f'<td>{sentences.PARTS[part]}</td><td class="num">{duration(share * whole)}</td>'
    f'<td class="num">{share:.1%}</td></tr>'
    for part, share in sorted(shares.items(), key=lambda item: -item[1])
    if share * whole >= 0.5
  )
  total = f'<p class="soft">{duration(whole)} since the start, over all sittings.</p>'
  return (
    f'<div class="card"><div class="bar">{bar}</div>'
    f'<div class="scroll"><table>{rows}</table></div>{total}</div>'
  )


def duration(seconds: float) -> str:
  """Seconds as hours, minutes and seconds: 1:02:03."""
  return str(datetime.timedelta(seconds=round(seconds)))
