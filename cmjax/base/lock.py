"""One run at a time in a workdir, by a lock that the kernel drops with the process that held it.

`workdir/lock` stays where it is; what counts is whether a process holds it (flock(2)), so a run
that was killed blocks nobody, and nothing needs to be removed by hand. The file says who holds it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger("cmjax")
NAME = "lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def hold(
  workdir: Path, *, primary: bool = True, agree: Callable[[bool], bool] = bool
) -> Iterator[None]:
  """Keeps other runs out of a workdir, which is made if it is not there.

  Where the file system has no locks, a warning says so and the run goes on.

  Args:
    workdir: of the run.
    primary: whether this process takes the lock, for all processes of the run.
    agree: whether all processes of the run say True; each asks once.

  Raises:
    ValueError: another run holds it, or the workdir cannot be written.
  """
  file, refusal = _take(workdir) if primary else (None, "")
  try:
    if not agree(not refusal):
      raise ValueError(refusal or f"Process 0 was refused {workdir}: its log says why.")
    yield
  finally:
    if file is not None:
      with contextlib.suppress(OSError):  # the name of a run that has ended harms nobody
        file.truncate(0)
      file.close()


def _take(workdir: Path) -> tuple[IO[str] | None, str]:
  """The open file that holds the lock, or None and why not."""
  file = None
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / NAME, "a+", encoding="utf-8")
    refusal = _lock(file, workdir)
    if not refusal:
      file.truncate(0)
      json.dump(_me(), file)
      file.flush()
  except OSError as error:
    refusal = (
      f"Cannot write to the workdir {workdir}: {error.strerror}. Mend that, or choose another "
      "--workdir."
    )
  if refusal and file is not None:
    with contextlib.suppress(OSError):  # of what the full disk had no room for
      file.close()
    file = None
  return file, refusal


def _lock(file: IO[str], workdir: Path) -> str:
  """Takes the lock; returns why not, if another run has it."""
  holder = _read(file)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in _HELD:
      logger.warning(
        "The file system of %s has no locks (%s): nothing but you keeps a second run out of it.",
        *(workdir, error.strerror),
      )
      return ""
    who = _name(holder) if holder else "a process that has only just begun"
    return (
      f"Another run trains in {workdir}: {who}. Wait for its end, stop it with SIGTERM (it saves "
      "its state first), or take another --workdir."
    )
  if holder and holder.get("host") != platform.node():
    logger.warning(
      "The run before in %s, %s, did not end by itself. If it may still run there, stop it: not "
      "every file system keeps locks between hosts.",
      *(workdir, _name(holder)),
    )
  return ""


def _me() -> dict[str, Any]:
  now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
  return {"host": platform.node(), "pid": os.getpid(), "since": now}


def _read(file: IO[str]) -> dict[str, Any]:
  """Who wrote the file; nobody, if that is not to be read."""
  file.seek(0)
  try:
    holder = json.loads(file.read())
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, Any]) -> str:
  pid, host, since = (holder.get(key, "?") for key in ("pid", "host", "since"))
  return f"process {pid} on {host}, since {since}"
