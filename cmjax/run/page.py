"""A run read back: its history, and one HTML page that shows it (curves, scores, samples, config).

The page is one file with inline CSS, SVG and pictures: no script, no network, light and dark.
`writer` writes what is read here.
"""

import base64
import datetime
import html
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cmjax.base import paths
from cmjax.base.atomic_files import replacing
from cmjax.run import checkpoint
from cmjax.run.charts import Series, chart, groups, number
from cmjax.run.history import records

_PICTURE = re.compile(r"(.+)_(\d{8,})\.png")
_MAX_PICTURES = 12  # of one name, and the last
_CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f27;--soft:#667085;--line:#e3e6ec;
--bad:#c62828}
@media (prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#181c22;--ink:#e7eaf0;--soft:#98a2b3;
--line:#2b313b;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}
h3{font-size:14px;margin:0}p{margin:8px 0;max-width:80ch}
.soft,figcaption{color:var(--soft);font-size:13px}.bad{color:var(--bad)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 16px}
.tiles .card{min-width:150px;flex:1}.tiles b{display:block;font-size:22px;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:14px}
.head{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline}
.head h3{margin-right:auto}.key{font-size:12px;color:var(--soft);white-space:nowrap}
.key.bad{color:var(--bad)}
.key i{display:inline-block;width:12px;height:3px;margin-right:5px;vertical-align:middle}
.charts .card{display:flex;flex-direction:column}
svg{display:block;width:100%;height:auto;margin-top:auto;padding-top:8px}
svg text{fill:var(--soft);font-size:11px}svg .axis{stroke:var(--line);stroke-width:1}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:13px}tr:last-child td{border-bottom:0}
.num{text-align:right}.config td{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
.config td:first-child{color:var(--soft);white-space:nowrap}
.samples{display:flex;flex-wrap:wrap;gap:18px;margin-top:10px;align-items:flex-start}
.samples>figure{flex:0 1 auto;max-width:min(100%,490px)}
.past{flex:1 1 420px;display:grid;gap:12px;
grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
figure{margin:0}figure img{display:block;max-width:100%;border-radius:4px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}
.stack>*{margin-bottom:14px}
"""


def read_metrics(workdir: str | os.PathLike) -> dict[str, Series]:
  """The history of a run, name -> (steps `[n]` int64, values `[n]` float64), by rising step.

  Of several values with the same name and step the last written one counts. A half-written last
  line is left out. A run without a history gives an empty dict.

  Raises:
    ValueError: for a line before the last that is no record: the file is damaged.
  """
  return _history(records(workdir))


def _history(lines: list[dict[str, Any]]) -> dict[str, Series]:
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
  notes: str | Sequence[str] = (),
) -> epath.Path:
  """Writes workdir/report.html: one file that needs nothing else, and no network, to be read.

  Args:
    workdir: of a `Reporter`; its history and samples may be short or missing.
    title: the heading.
    config: nested dicts; shown in full.
    scores: the rows of a table; the columns are their keys, in order of appearance.
    notes: paragraphs of plain text.

  Returns:
    The path of the page.
  """
  workdir = paths.place(workdir, "workdir")
  lines = records(workdir)
  last_step = max((line["step"] for line in lines), default=math.inf)
  text = page(
    title=title,
    history=_history(lines),
    pictures=_pictures(workdir / "samples", last_step),
    times=[line["time"] for line in lines],
    scores=scores,
    config=config,
    notes=[notes] if isinstance(notes, str) else notes,
    versions=versions(),
  )
  workdir.mkdir(parents=True, exist_ok=True)
  with replacing(workdir / "report.html") as file:
    file.write(text.encode())
  return workdir / "report.html"


def _pictures(folder: epath.Path, last_step: int | float) -> dict[str, list[tuple[int, bytes]]]:
  found: dict[str, list[tuple[int, epath.Path]]] = {}
  for path in folder.iterdir() if folder.is_dir() else ():
    match = _PICTURE.fullmatch(path.name)
    if match and int(match[2]) <= last_step:
      found.setdefault(match[1], []).append((int(match[2]), path))
  return {
    name: [(step, path.read_bytes()) for step, path in _spread(sorted(found[name]), _MAX_PICTURES)]
    for name in sorted(found)
  }


def _spread(items: list, most: int) -> list:
  """At most `most` of the items, evenly spread, and the last one."""
  if len(items) <= most + 1:
    return items
  return [items[round(i * (len(items) - 1) / most)] for i in range(most + 1)]


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
  pictures: Mapping[str, Sequence[tuple[int, bytes]]],
  times: Sequence[float],
  scores: Sequence[Mapping[str, Any]],
  config: Mapping[str, Any],
  notes: Sequence[str],
  versions: Mapping[str, str],
) -> str:
  """The HTML text of `report`, from values alone: reads and writes no file.

  Args:
    title: the heading.
    history: as from `read_metrics`.
    pictures: name -> (step, PNG bytes), by rising step.
    times: Unix seconds of the records, for the dates and the duration.
    scores: rows of a table.
    config: nested dicts.
    notes: paragraphs.
    versions: package -> version.
  """
  charts = "".join(chart(*group, _steps(history)) for group in groups(history))
  table = f'<div class="card scroll">{_table(scores)}</div>' if scores else ""
  sections = (
    ("Scores", table),
    ("Samples", "".join(_samples(name, shots) for name, shots in pictures.items())),
    ("Curves", f'<div class="charts">{charts}</div>' if charts else ""),
    ("Configuration", _config(config)),
    ("Versions", f'<div class="card scroll config">{_rows(versions.items())}</div>'),
  )
  body = "".join(f"<section><h2>{name}</h2>{part}</section>" for name, part in sections if part)
  empty = "" if history else "<p>No metrics have been recorded yet.</p>"
  text = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
  return _document(title, f"{_summary(history, times, config)}{text}{empty}", body)


def chart_page(
  title: str, card: str, rows: Sequence[Mapping[str, Any]], notes: Iterable[str]
) -> str:
  """The HTML text of a page of one chart (`charts.chart`), and the table of its numbers."""
  text = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
  table = f'<div class="card scroll">{_table(rows)}</div>'
  body = f'<section><div class="charts">{card}</div></section><section>{table}</section>'
  return _document(title, text, body)


def _document(title: str, head: str, body: str) -> str:
  # The policy makes the browser itself hold the promise of no script and no network.
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{html.escape(title)}</title><style>{_CSS}</style></head><body><main>
<header><h1>{html.escape(title)}</h1>{head}</header>
{body}</main></body></html>
"""


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
    ("loss", "Loss", lambda v: v[-1], "last"),
    ("skipped", "Skipped steps", np.nanmax, "not finite"),
    ("rolled_back", "Roll backs", np.nanmax, "to a checkpoint"),
    ("spikes", "Spikes", np.nanmax, "of a sitting"),
  ):
    if name in history and not np.isnan(history[name][1]).all():
      tiles.append((label, number(pick(history[name][1])), hint))
  cells = "".join(
    f'<div class="card"><span class="soft">{label}</span><b>{value}</b>'
    f'<span class="soft">{hint}</span></div>'
    for label, value, hint in tiles
  )
  return f'{when}<div class="tiles">{cells}</div>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
  columns = list(dict.fromkeys(key for row in rows for key in row))
  kinds = {
    c: "num" if all(isinstance(r.get(c, 0), int | float | np.number | None) for r in rows) else ""
    for c in columns
  }

  def cell(row, column):
    value = row.get(column)
    bad = isinstance(value, float | np.floating) and not math.isfinite(value)
    return f'<td class="{kinds[column]}{" bad" * bad}">{number(value)}</td>'

  head = "".join(f'<th class="{kinds[c]}">{html.escape(str(c))}</th>' for c in columns)
  body = "".join("<tr>" + "".join(cell(r, c) for c in columns) + "</tr>" for r in rows)
  return f"<table><tr>{head}</tr>{body}</table>"


def _rows(items: Iterable[tuple[str, Any]]) -> str:
  text = ((html.escape(str(k)), html.escape(str(v))) for k, v in items)
  return f"<table>{''.join(f'<tr><td>{k}</td><td>{v}</td></tr>' for k, v in text)}</table>"


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
  cards = (_rows(part) for part in (items[:half], items[half:]) if part)
  return f'<div class="two config">{"".join(f"<div class=card>{c}</div>" for c in cards)}</div>'


def _samples(name: str, shots: Sequence[tuple[int, bytes]]) -> str:
  def figure(step, png):
    data = base64.b64encode(png).decode()
    label = f"{name}, step {step}"
    return (
      f'<figure><img alt="{html.escape(label)}" src="data:image/png;base64,{data}">'
      f"<figcaption>step {step:,}</figcaption></figure>"
    )

  past = "".join(figure(*shot) for shot in shots[:-1])
  return (
    f'<div class="card stack"><h3>{html.escape(name)}</h3><div class="samples">'
    f'{figure(*shots[-1])}<div class="past">{past}</div></div></div>'
  )
