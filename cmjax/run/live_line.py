"""What a run says of itself while it runs: one line that a terminal rewrites, or plain lines.

A log file or a notebook is no terminal: it gets a line every `every_sec` seconds, and one for the
last step.
"""

import datetime
import logging
import math
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from cmjax.base import printable

logger = logging.getLogger("cmjax")

# What to watch, in this order: (name of a metric, what the line calls it). A loss is shown where
# neither is there: that of consistency training says little.
WATCHED = (("tangent_norm", "tangent norm"), ("F_error", "F error"))


class LiveLine:
  """The live line of a run.

  Args:
    stream: a text file; None: stderr.
    total_steps: of the run.
    every_sec: seconds between two lines where there is no terminal.
  """

  def __init__(self, stream: Any, total_steps: int, every_sec: int | float):
    self._stream = stream or sys.stderr
    self._total_steps = total_steps
    self._terminal = bool(self._stream.isatty())
    self._every_sec = 0.1 if self._terminal else every_sec
    self._drawn_at, self._open = -math.inf, False
    self.score = ""  # the newest score, in words
    if self._terminal:
      logger.addFilter(self._clear_before)

  def due(self, step: int, now: float) -> bool:
    """Whether to draw now: not too often, and at the last step."""
    if now - self._drawn_at < self._every_sec and step != self._total_steps:
      return False
    self._drawn_at = now
    return True

  def draw(self, step: int, scalars: Mapping[str, Any], rate: Mapping[str, float]) -> None:
    """Draws the line.

    Args:
      step: the number of steps done.
      scalars: the newest metrics.
      rate: `steps_per_sec` and `images_per_sec`; empty where they are not known yet.
    """
    parts = [f"step {step}/{self._total_steps} {100 * step / self._total_steps:3.0f}%"]
    if rate:
      seconds = max(0, self._total_steps - step) / rate["steps_per_sec"]
      parts.append(f"ETA {datetime.timedelta(seconds=round(seconds))}")
    watched = [(name, word) for name, word in WATCHED if name in scalars]
    watched = watched or [("loss", "loss")] * ("loss" in scalars)
    parts += [f"{word} {float(scalars[name]):.4g}" for name, word in watched]
    parts += [self.score] * bool(self.score)
    if skipped := float(scalars.get("skipped", 0)):
      parts.append(f"skipped {skipped:g}")
    if rate:
      parts += [f"{rate['steps_per_sec']:.3g} step/s", f"{rate['images_per_sec']:,.0f} img/s"]
    line = printable.printable("  ".join(parts))
    if self._terminal:
      width = shutil.get_terminal_size().columns - 1
      self._write(f"\r{line[:width]}\x1b[K")  # the escape erases what a longer line left behind
      self._open = True
      if step == self._total_steps:  # what is said after it must not erase it
        self.close()
    else:
      self._write(f"{line}\n")

  def say(self, text: str) -> None:
    """A line that stays."""
    self._clear()
    self._write(f"{printable.printable(text)}\n")

  def close(self) -> None:
    """Ends the line; a second call does nothing."""
    logger.removeFilter(self._clear_before)
    if self._open:
      self._write("\n")
      self._open = False

  def _clear_before(self, record: logging.LogRecord) -> bool:
    """Lets every record through; what is logged begins a line of its own."""
    del record
    self._clear()
    return True

  def _clear(self) -> None:
    if self._open:
      self._write("\r\x1b[K")
      self._open = False

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()
