"""Where the time of a run goes: its wall time by kind, over all its sittings.

Each record of `metrics.jsonl` has the shares up to then, `goodput/steps`, `goodput/saves`, ...,
which add to 1, and their whole, `wall_sec`. A sitting that goes on reads them there, and so knows
what was lost before it: nothing else is stored.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

KINDS = {
  "steps": "training steps whose result was kept",
  "data": "waiting for a batch while the devices had nothing to do",
  "saves": "training waited for a checkpoint or a snapshot",
  "evaluations": "evaluators, pictures, and the doctor's comparison with float64",
  "compiling": "compiling the train step",
  "start": "from the start of a sitting to its first step: data, teacher, restore",
  "lost": "steps that had to be made again, after a kill or a roll back",
  "away": "between the last record of a sitting and the start of the next",
}
_MADE_AGAIN = ("steps", "data")  # what a kill takes with it


class Goodput:
  """Counts the seconds of a sitting by kind, on top of those of the sittings before it.

  All time is of one kind: the innermost that is open. What is not of any other is `start` until
  `begin_steps`, and `steps` after it.

  Args:
    clock: seconds, from any origin.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._seconds = dict.fromkeys(KINDS, 0.0)
    self._open = ["start"]
    self._since = self._began = clock()
    self._at_save: dict[int, dict[str, float]] = {}
    self.failed_in = ""  # the kind in which an error was raised since the last step
    self.turns = 0  # signs of life: steps that ended, kinds that began or ended

  @property
  def kind(self) -> str:
    """What the time goes into just now."""
    return self._open[-1]

  @contextlib.contextmanager
  def spending(self, kind: str) -> Iterator[None]:
    """Counts the time inside as of a kind, but for what is opened within it."""
    self._count()
    self._open.append(kind)
    try:
      yield
    except BaseException:
      self.failed_in = self.failed_in or kind
      raise
    finally:
      self._count()
      self._open.pop()

  def begin_steps(self) -> None:
    """From here on, what is of no other kind are steps; called at every step, it says so."""
    self._count()
    self._open[0], self.failed_in = "steps", ""

  def waited_for_data(self, seconds: float) -> None:
    """Of the last steps' time, so much was waiting for a batch."""
    self._count()
    self._move(seconds, "steps", "data")

  def saved(self, step: int) -> None:
    """A run that goes on from this step loses what comes after."""
    self._count()
    self._at_save[step] = dict(self._seconds)

  def rolled_back(self, step: int) -> None:
    """The steps after this one have to be made again."""
    self._count()
    self._lose_since(self._at_save.get(step, {}))

  def go_on(self, lines: Sequence[Mapping[str, Any]], step: int, now: float) -> None:
    """Takes over the time of the sittings before this one.

    Args:
      lines: all records of metrics.jsonl, those after `step` as well.
      step: this sitting goes on from.
      now: Unix seconds, as in the records.
    """
    known = [line for line in lines if "wall_sec" in line]
    if not known:
      return
    self._count()
    last = known[-1]
    for kind, seconds in _seconds(last).items():
      self._seconds[kind] += seconds
    at_step = [line for line in known if line["step"] <= step]
    self._lose_since(_seconds(at_step[-1]) if at_step else {})
    # Clocks of two machines may differ by more than what is between two sittings.
    here = self._clock() - self._began
    self._seconds["away"] += max(0.0, now - float(last["time"]) - here)
    self.saved(step)

  def scalars(self) -> dict[str, float]:
    """The shares of all kinds, which add to 1, and the seconds in all; for a record."""
    self._count()
    whole = sum(self._seconds.values())
    if whole <= 0:
      return {}
    return {f"goodput/{kind}": s / whole for kind, s in self._seconds.items()} | {"wall_sec": whole}

  def _count(self) -> None:
    now = self._clock()
    self._seconds[self._open[-1]] += now - self._since
    self._since = now
    self.turns += 1

  def _lose_since(self, before: Mapping[str, float]) -> None:
    for kind in _MADE_AGAIN:
      self._move(self._seconds[kind] - before.get(kind, 0.0), kind, "lost")

  def _move(self, seconds: float, source: str, to: str) -> None:
    seconds = min(max(0.0, seconds), self._seconds[source])
    self._seconds[source] -= seconds
    self._seconds[to] += seconds


def _seconds(line: Mapping[str, Any]) -> dict[str, float]:
  """The seconds of each kind that a record has."""
  return {kind: float(line.get(f"goodput/{kind}", 0.0)) * float(line["wall_sec"]) for kind in KINDS}
