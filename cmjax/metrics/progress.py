"""How far a long evaluation is, in the log."""

import datetime
import logging
import time
from collections.abc import Callable

logger = logging.getLogger("cmjax")


class Progress:
  """A line now and then: images so far, their rate, the time that is left.

  The rate is that since the first batch, which may have had to compile.

  Args:
    what: is scored, in words.
    total: images, or batches of them.
    every_sec: at most one line in so many seconds; short evaluations have none.
    clock: seconds, from any origin.
  """

  def __init__(
    self,
    what: str,
    total: int,
    *,
    every_sec: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._what, self._total, self._every_sec, self._clock = what, total, every_sec, clock
    self._done, self._told, self._first = 0, clock(), None

  def add(self, num: int) -> None:
    """So many more are done."""
    self._done += num
    now = self._clock()
    if self._first is None:
      self._first = (self._done, now)
      return
    done, since = self._first
    if now - self._told < self._every_sec or self._done >= self._total or now <= since:
      return
    self._told = now
    rate = (self._done - done) / (now - since)
    left = datetime.timedelta(seconds=round((self._total - self._done) / rate))
    logger.info(
      "%s: %s of %s images, %.3g a second, ETA %s.",
      self._what, f"{self._done:,}", f"{self._total:,}", rate, left,
    )  # fmt: skip
