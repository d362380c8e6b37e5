"""One check is one row: truth, value, error, tolerance."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
  """One check. Of arrays, truth and value are those of the entry with the largest error."""

  group: str
  name: str
  truth: float
  value: float
  error: float  # |value - truth| / (|truth| + unit)
  tolerance: float
  note: str = ""

  @property
  def passed(self) -> bool:
    """Whether the error is within tolerance; a NaN is not."""
    return self.error <= self.tolerance


def row(name: str, value: Any, truth: Any, tolerance: float = 2e-5, *, unit: float = 1.0) -> Row:
  """Compares two arrays of one shape; unit=0 compares relative to each entry."""
  value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
  if value.shape != truth.shape:
    note = f"shape {value.shape}, expected {truth.shape}"
    return Row("", name, math.nan, math.nan, math.inf, tolerance, note)
  with np.errstate(divide="ignore", invalid="ignore"):
    errors = np.where(value == truth, 0.0, np.abs(value - truth) / (np.abs(truth) + unit)).ravel()
  worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
  return Row("", name, truth.flat[worst], value.flat[worst], float(errors[worst]), tolerance)


def table(found: Sequence[Row]) -> str:
  """The rows as text, the failed ones again at the end."""
  width = max(len(f"{r.group}: {r.name}") for r in found)

  def line(r):
    numbers = f"{r.truth:>12.6g} {r.value:>12.6g} {r.error:>9.1e} {r.tolerance:>9.1e}"
    return f"{f'{r.group}: {r.name}':<{width}} {numbers}  {'ok' if r.passed else 'FAIL'} {r.note}"

  head = f"{'':<{width}} {'truth':>12} {'value':>12} {'error':>9} {'allowed':>9}"
  failed = [r for r in found if not r.passed]
  lines = [head, *map(line, found), "", f"{len(found) - len(failed)} of {len(found)} passed."]
  return "\n".join(text.rstrip() for text in [*lines, *map(line, failed)])
