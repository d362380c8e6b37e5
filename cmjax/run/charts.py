"""Curves as inline SVG: which lines go into one chart, its axes, how long ones are thinned out."""

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Series = tuple[np.ndarray, np.ndarray]  # steps [n], values [n]

_MAX_POINTS = 300  # of one curve; more are drawn as means, and the range beside them
_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 548, 10, 204
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#eab308", "#ef4444")
# Charts in this order, then all others by name. A trailing "/" is a family, one line per member.
_ORDER = (
  *("fd", "swd", "tangent_norm", "tangent_norm/", "F_error", "F_error/", "loss", "lr"),
  *("images_per_sec", "steps_per_sec", "mfu", "goodput/", "grad_norm", "weight"),
  *("skipped",),
)
_TITLES = {
  "loss": "Loss",
  "fd": "Fréchet distance",
  "swd": "Sliced Wasserstein distance",
  "tangent_norm": "Tangent norm",
  "tangent_norm/": "Tangent norm by time t",
  "F_error": "F error",
  "F_error/": "F error by time t",
  "lr": "Learning rate",
  "images_per_sec": "Images per second",
  "steps_per_sec": "Steps per second",
  "mfu": "Share of the chips' peak (MFU)",
  "goodput/": "Share of wall time",
  "wall_sec": "Seconds of wall time",
  "grad_norm": "Gradient norm",
  "weight": "Loss weight",
  "skipped": "Skipped steps",
  "evaluation_sec/": "Seconds of evaluation",
}
# What a line is drawn dashed for: values to compare with, which do not change with the steps.
TEACHER = "teacher: "


class Group(NamedTuple):
  """The lines of one chart.

  Attributes:
    key: of the group: `fd/`, `loss`.
    title: of the chart.
    lines: label -> series.
    ordered: whether the labels are a sequence.
  """

  key: str
  title: str
  lines: dict[str, Series]
  ordered: bool


def number(value: Any) -> str:
  """Text of a table cell: 4 digits for floats, a dash for what is missing."""
  if value is None:
    return "–"
  if isinstance(value, bool | np.bool_):
    return "yes" if value else "no"
  if isinstance(value, int | np.integer):
    return f"{value:,}"
  if isinstance(value, float | np.floating):
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
  return html.escape(str(value))


def groups(history: Mapping[str, Series], first: Sequence[str] = ()) -> list[Group]:
  """The charts of a history, in their order; those with a key in `first` come first.

  `family/member` are lines of one chart, and so are `fd_1step`, `fd_2step` and `fd_floor`. Another
  value of the same evaluator, `fd/sampler/ema/value` and `fd/floor/value`, has a chart of its own.
  """
  groups: dict[str, dict[str, Series]] = {}
  for name, series in history.items():
    family, slash, member = name.partition("/")
    if other := re.fullmatch(r"([^/]+)/(floor|[^/]+/[^/]+)/([^/]+)", name):
      family, member = f"{other[1]}/{other[3]}", other[2]
    together = re.fullmatch(r"(.+)_(\d+step|floor|min|max)", name)
    if slash:
      groups.setdefault(family + "/", {})[member] = series
    elif together:
      groups.setdefault(together[1], {})[name] = series
    else:
      groups.setdefault(name, {})[name] = series
  charts = []
  for group in in_order(groups, first):
    lines = {k: groups[group][k] for k in sorted(groups[group], key=_natural)}
    charts.append(Group(group, title(group), lines, group.endswith("/")))
  return charts


def in_order(names: Iterable[str], first: Sequence[str] = ()) -> list[str]:
  """Groups of curves in the order of their charts: `first`, the known ones, all others by name."""
  place = {name: i for i, name in enumerate((*first, *_ORDER))}
  return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def _natural(name: str) -> list[str]:
  """Numbers inside a name count as numbers: 2step before 10step, t0.39 before t1.18."""
  return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def title(group: str) -> str:
  """What a group of curves is called."""
  return _TITLES.get(group, group.rstrip("/"))


def _colour(i: int, n: int, label: str, ordered: bool) -> str:
  if _is_fixed(label):
    return "var(--soft)"
  if ordered or n > len(_COLOURS):  # a sequence of times is a ramp, from blue through red to gold
    return f"hsl({(215 + 190 * i / max(1, n - 1)) % 360:.0f} 75% 57%)"
  return _COLOURS[i]


def _is_fixed(label: str) -> bool:
  return label.endswith("floor") or label.startswith(TEACHER)


def _range_of_t(label: str) -> str:
  match = re.fullmatch(r"t?(\d+\.?\d*)-(\d+\.?\d*)", label)
  return f"t {match[1]}–{match[2]}" if match else label


def chart(
  title: str,
  lines: Mapping[str, Series],
  ordered: bool,
  span: tuple[int | float, int | float],
  *,
  x_label: str = "step",
  about: str = "",
) -> str:
  """One card: title, legend with last values, a sentence, and the curves over the steps `span`.

  Over anything else than steps (`x_label`) the legend has the lowest values.
  """
  of_steps = x_label == "step"
  values = np.concatenate([v for _, v in lines.values()])
  lost = np.count_nonzero(~np.isfinite(values))
  from_zero = all(name.endswith("_per_sec") for name in lines)  # a steady pace should look steady
  to_y, ticks, remark = _y_axis(values[np.isfinite(values)], from_zero)
  first, last = span if span[0] < span[1] else (span[0] - 1, span[0] + 1)
  x = lambda steps: np.interp(steps, (first, last), (_LEFT, _RIGHT))
  x_ticks = [s for s in _nice(*span, 6) if not of_steps or s == int(s)]
  marks, keys = [_axes(to_y, ticks, x, x_ticks, x_label)], []
  for i, (label, (steps, v)) in enumerate(lines.items()):
    colour, name = _colour(i, len(lines), label, ordered), html.escape(_range_of_t(label))
    marks.append(_curve(name, x(steps), v, to_y, colour, alone=len(lines) == 1))
    swatch = f'<i style="background:{colour}"></i>{name}' if len(lines) > 1 else ""
    word, value = ("last", v[-1]) if of_steps else ("lowest", np.nanmin(v))
    keys.append(f'<span class="key">{swatch or word} <b>{number(value)}</b></span>')
  if remark:
    keys.append(f'<span class="key">{remark}</span>')
  if lost:
    keys.append(f'<span class="key bad">{lost} not finite</span>')
  sentence = f'<p class="soft">{html.escape(about)}</p>' if about else ""
  return (
    f'<div class="card"><div class="head"><h3>{html.escape(title)}</h3>{"".join(keys)}</div>'
    f'{sentence}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
    f"{''.join(marks)}</svg></div>"
  )


def _y_axis(values: np.ndarray, from_zero: bool) -> tuple[Callable, list[float], str]:
  """Value -> pixel, the ticks, and what to tell the reader about the scale."""
  low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
  low = min(low, 0.0) if from_zero else low
  log = low > 0 and high / low > 30
  remark = "log scale" if log else ""
  if not log and not from_zero and len(values) > 100:
    inner = np.percentile(values, (1, 99))
    if high - low > 5 * (inner[1] - inner[0]) > 0:  # a few spikes would flatten all the rest
      (low, high), remark = inner, "spikes cut off"
  if high - low <= 1e-9 * abs(high):
    low, high = (low - abs(low) / 10, high + abs(high) / 10) if high else (-1.0, 1.0)
  scale = np.log10 if log else np.asarray
  a, b = scale(low), scale(high)
  a, b = a - 0.05 * (b - a), b + 0.05 * (b - a)
  a, b = float(a), float(b)
  to_y = lambda v: np.interp(scale(v), (a, b), (_BOTTOM, _TOP))
  if not log:
    return to_y, _nice(a, b, 6), remark
  decades = np.arange(math.ceil(a), math.floor(b) + 1)
  factors = (1, 2, 5) if len(decades) < 3 else (1,)
  decades = np.arange(math.floor(a), b + 1, max(1, len(decades) // 5))
  ticks = [f * 10.0**d for d in decades for f in factors]
  return to_y, [t for t in ticks if a <= math.log10(t) <= b], remark


def _nice(low: int | float, high: int | float, most: int) -> list[float]:
  """Round numbers in [low, high], about `most` of them."""
  if high <= low:
    return [float(low)]
  rough = (high - low) / most
  unit = 10.0 ** math.floor(math.log10(rough))
  step = next(unit * f for f in (1, 2, 2.5, 5, 10) if unit * f >= rough * 0.999)
  return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: int | float) -> str:
  for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:g}{suffix}"
  return re.sub(r"e-0", "e-", f"{value:g}")


def _axes(
  to_y: Callable, y_ticks: list[float], to_x: Callable, x_ticks: list[float], x_label: str
) -> str:
  parts = []
  for tick in y_ticks:
    y = float(to_y(tick))
    parts.append(f'<path class="axis" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
  for tick in x_ticks:
    x = float(to_x(tick))
    parts.append(f'<path class="axis" d="M{x:.1f} {_BOTTOM}v4"/>')
    parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{_short(tick)}</text>')
  parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
  middle = (_LEFT + _RIGHT) // 2
  parts.append(f'<text x="{middle}" y="{_BOTTOM + 33}" text-anchor="middle">{x_label}</text>')
  return "".join(parts)


def _curve(name: str, x: np.ndarray, v: np.ndarray, to_y: Callable, colour: str, *, alone) -> str:
  """One line with gaps where values are not finite; long ones as means, with their range."""
  band, finite = "", np.isfinite(v)
  if len(v) > _MAX_POINTS:
    edges = np.linspace(0, len(v), _MAX_POINTS, endpoint=False).astype(int)
    count = np.add.reduceat(finite.astype(float), edges)
    total = np.add.reduceat(np.where(finite, v, 0), edges)
    low = np.minimum.reduceat(np.where(finite, v, np.inf), edges)
    high = np.maximum.reduceat(np.where(finite, v, -np.inf), edges)
    x, finite = x[edges], count > 0
    v = total / np.maximum(count, 1)
    if alone:
      around = np.concatenate([high[finite], low[finite][::-1]])
      across = np.concatenate([x[finite], x[finite][::-1]])
      points = " ".join(f"{p:.1f},{to_y(q):.1f}" for p, q in zip(across, around, strict=True))
      band = f'<polygon points="{points}" style="fill:{colour};opacity:.2"/>'
  path, pen = "", "M"
  for p, q, there in zip(x, v, finite, strict=True):
    # h0 after a move: with round caps, a point between two gaps is still seen, as a dot.
    path += f"{pen}{p:.1f} {to_y(q):.1f}{'h0' if pen == 'M' else ''}" if there else ""
    pen = "L" if there else "M"
  spots = [(p, to_y(q)) for p, q in zip(x[finite], v[finite], strict=True)] if len(v) <= 30 else []
  dots = "".join(f'<circle cx="{p:.1f}" cy="{q:.1f}" r="3" fill="{colour}"/>' for p, q in spots)
  style = f"fill:none;stroke:{colour};stroke-width:1.6;stroke-linecap:round;stroke-linejoin:round"
  dash = ";stroke-dasharray:5 4" if _is_fixed(name) else ""
  return f'{band}<path style="{style}{dash}" d="{path}"><title>{name}</title></path>{dots}'
