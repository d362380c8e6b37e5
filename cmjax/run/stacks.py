"""What all threads of a process do just now: on SIGUSR2, and where no step has ended for long.

  kill -USR2 PID

The stacks go to `stacks.<process>.txt` in the workdir and to stderr, and the run goes on. The file
is written by a handler in C: it comes even from a process whose main thread waits in a collective
for ever, where no handler in Python runs.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from cmjax.base import stores

logger = logging.getLogger("cmjax")

TICK = 1.0  # seconds between two looks


class Stacks:
  """Writes stacks while it is open.

  Args:
    workdir: of the run; there already. What it would have is in a folder for temporary files where
      it is in a bucket: the handler in C writes to disks alone.
    process: the number of this one.
    limit: seconds without a sign of life after which all stacks are written, and again after twice
      and four times as long, and so on; None: never.
    turns: counts the signs of life.
    doing: what goes on, for the message.
    stream: of the copies; None: stderr.
    clock: seconds, from any origin.
    tick: seconds between two looks.
  """

  def __init__(
    self,
    workdir: epath.Path,
    process: int,
    limit: float | None,
    turns: Callable[[], int],
    doing: Callable[[], str],
    *,
    stream: Any = None,
    clock: Callable[[], float] = time.monotonic,
    tick: float = TICK,
  ):
    folder = Path(tempfile.gettempdir() if stores.is_remote(workdir) else workdir)
    number = f"{os.getpid()}.{process}" if stores.is_remote(workdir) else process
    self.path = folder / f"stacks.{number}.txt"
    self._limit, self._turns, self._doing = limit, turns, doing
    self._stream, self._clock, self._tick = stream, clock, tick
    self._registered = self._before = False
    self._seen, self._alive, self._next = -1, clock(), limit
    self._closed = threading.Event()

  def __enter__(self) -> "Stacks":
    self._file = open(self.path, "ab")
    self._copied = self._file.seek(0, os.SEEK_END)
    number = getattr(signal, "SIGUSR2", None)  # not on Windows
    in_main = threading.current_thread() is threading.main_thread()
    if number and in_main and signal.getsignal(number) is signal.SIG_DFL:
      self._before = faulthandler.unregister(number)  # whether the program did without a workdir
      faulthandler.register(number, file=self._file, all_threads=True)
      self._registered = True
    self._thread = threading.Thread(target=self._watch, name="cmjax stacks", daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._closed.set()
    self._thread.join()
    if self._registered:
      faulthandler.unregister(signal.SIGUSR2)
      if self._before:
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    self._copy()
    self._file.close()
    if not self._copied:
      with contextlib.suppress(OSError):  # the workdir may be gone
        self.path.unlink()

  def _watch(self) -> None:
    while not self._closed.wait(self._tick):
      self.look()

  def look(self) -> None:
    """Copies stacks that a signal has asked for, and writes those of a stall."""
    now, turns = self._clock(), self._turns()
    if turns != self._seen:
      self._seen, self._alive, self._next = turns, now, self._limit
    if self._next is not None and now - self._alive >= self._next:
      self._next *= 2
      logger.warning(
        "No step has ended for %.0f s (now: %s). The stacks of all threads are in %s; the run is "
        "left as it is. doctor.stall_seconds sets after how long this is said.",
        *(now - self._alive, self._doing(), self.path),
      )
      self._file.write(f"No step has ended for {now - self._alive:.0f} s.\n".encode())
      self._file.flush()
      faulthandler.dump_traceback(self._file, all_threads=True)
    self._copy()

  def _copy(self) -> None:
    """To the screen what has come to the file since the last look."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is closed
      size = os.fstat(self._file.fileno()).st_size
      if size > self._copied:
        with self.path.open("rb") as file:
          file.seek(self._copied)
          text = file.read().decode(errors="replace")
        self._copied = size
        stream = self._stream or sys.stderr
        stream.write(text)
        stream.flush()
