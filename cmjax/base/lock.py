"""One writer of a thing in a workdir at a time, by locks that the kernel drops with their process.

Where the kernel has no locks, as in a bucket, a lease takes their place (`base/lease.py`).

Who trains, converts or prepares holds `workdir/lock` to the end. Scores, averages, times and
samples have locks of their own (`TASKS`), so that they are made beside a training. A lock's file
stays where it is; what counts is whether a process holds it (flock(2)), so a run that was killed
blocks nobody, and nothing needs to be removed by hand. The file says who holds it.
"""

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from etils import epath

from cmjax.base import atomic_files, json_files, lease, paths, place, stores
from cmjax.base.lease import Held, Lease

logger = logging.getLogger("cmjax")
MOST_BYTES = 2**16  # of a lock that are read
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_LATER = "Wait for its end, or take another --workdir."


class Task(NamedTuple):
  """What writes into a workdir.

  Attributes:
    file: of the lock; tasks with the same keep each other out.
    busy: begins what is said to those who find it held.
    advice: ends it.
    begins: whether the workdir is made if it is not there: one that others need was renamed.
  """

  file: str
  busy: str
  advice: str = _LATER
  begins: bool = False


TASKS = {
  "train": Task(
    "lock",
    "Another run trains in",
    "Wait for its end, stop it with SIGTERM (it saves its state first), or take another --workdir.",
    begins=True,
  ),
  "convert": Task("lock", "A checkpoint is being converted to", begins=True),
  "prepare": Task(
    "lock", "A set is being prepared in", "Wait for its end, or take another --out.", begins=True
  ),
  "download": Task("lock", "Another process downloads to", "Wait for its end."),
  "evaluate": Task("lock.scores", "Another process scores"),
  "average": Task("lock.averages", "Another process writes averages in"),
  "search": Task("lock.times", "Another process writes searched times in"),
  "sample": Task("lock.samples", "Another process writes samples in"),
}


@contextlib.contextmanager
def hold(
  workdir: str | os.PathLike[str],
  task: str = "train",
  *,
  wait: bool = False,
  primary: bool = True,
  agree: Callable[[bool], bool] = bool,
) -> Iterator[Callable[[], None]]:
  """Keeps others out of what a task writes in a workdir.

  What killed writers left half-written in it is removed.

  Args:
    workdir: of the run, on a disk or in a bucket.
    task: one of `TASKS`.
    wait: for whoever holds it, after one line that says so: for what is written in a moment.
    primary: whether this process takes the lock, for all processes of the run.
    agree: whether all processes of the run say True; each asks once.

  Yields:
    A function that raises OSError if the workdir was renamed, removed or replaced meanwhile, or if
    another process has taken its lease.

  Raises:
    ValueError: another process holds it, or the workdir cannot be written.
  """
  workdir = paths.place(workdir, "workdir")
  held, refusal = _take(workdir, task, wait) if primary else (None, "")
  try:
    if not agree(not refusal):
      raise ValueError(refusal or f"Process 0 was refused {workdir}: its log says why.")
    if held is not None:
      atomic_files.clear_partials(workdir)
    yield _check(workdir, held)
  finally:
    if isinstance(held, Lease):
      with contextlib.suppress(OSError):  # it is taken for dead after a while
        held.let_go()
    elif held is not None:
      with contextlib.suppress(OSError):  # the name of a run that has ended harms nobody
        held.truncate(0)
      held.close()


def is_held(workdir: str | os.PathLike[str], task: str = "train") -> bool:
  """Whether a process holds the lock of a task, as far as that is seen from here.

  Nothing is taken or written. A lock that a killed process of another host has left in a file
  system without locks between hosts looks free, and so does one that nobody may read.
  """
  workdir = paths.place(workdir, "workdir")
  folder = workdir / f"{TASKS[task].file}.lease"
  with contextlib.suppress(OSError):
    if folder.is_dir() and lease.holds(folder):
      return True
  path = workdir / TASKS[task].file
  if stores.is_remote(workdir) or not path.is_file():
    return False
  try:
    with open(path, encoding="utf-8") as file:
      # Whoever ends by itself leaves the file empty: only after a kill is the lock asked itself,
      # by a moment's lock that readers share.
      if not _read(file):
        return False
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as error:
    return error.errno in _HELD
  return False


def _take(workdir: epath.Path, task: str, wait: bool) -> tuple[IO[str] | Lease | None, str]:
  """The open file that holds the lock, or the lease; or None and why not."""
  file = None
  try:
    if stores.is_remote(workdir):
      return _lease(workdir, task, wait)
    if TASKS[task].begins:
      workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / TASKS[task].file, "a+", encoding="utf-8")
    try:
      refusal = _lock(file, workdir, task, wait)
    except NoLocks:
      file.close()
      return _lease(workdir, task, wait)
    if not refusal:
      file.truncate(0)
      json.dump(_me(task), file)
      file.flush()
  except OSError as error:
    refusal = (
      f"Cannot write to the workdir {workdir}: {error.strerror or error}. Mend that, or choose "
      "another --workdir."
    )
  if refusal and file is not None:
    with contextlib.suppress(OSError):  # of what the full disk had no room for
      file.close()
    file = None
  return file, refusal


class NoLocks(Exception):
  """The file system has no locks."""


def _lease(workdir: epath.Path, task: str, wait: bool) -> tuple[Lease | None, str]:
  """The lease of a task, after its holder if it may wait; or why not, if another has it."""
  lease = Lease(
    workdir / f"{TASKS[task].file}.lease",
    _me(task),
    creates=place.capabilities(workdir).creates,
  )

  @functools.cache  # one line for each, however often it is seen
  def say(busy: str, who: str) -> None:
    logger.info("%s %s: %s. This one waits for it.", busy, workdir, who)

  try:
    lease.take(wait=wait, say=lambda holder: say(_busy(holder, task).busy, _name(holder)))
  except Held as error:
    (holder,) = error.args
    held = _busy(holder, task)
    return None, f"{held.busy} {workdir}: {_name(holder)}. {held.advice}"
  return lease, ""


def _busy(holder: Mapping[str, Any], task: str) -> Task:
  """The task of who holds a lock."""
  return TASKS.get(str(holder.get("task")), TASKS[task])


def _lock(file: IO[str], workdir: epath.Path, task: str, wait: bool) -> str:
  """Takes the lock, after its holder if it may wait; returns why not, if another has it."""
  holder = _read(file)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in _HELD:
      raise NoLocks from error
    held = _busy(holder, task)
    who = _name(holder) if holder else "a process that has only just begun"
    if not wait:
      return f"{held.busy} {workdir}: {who}. {held.advice}"
    logger.info("%s %s: %s. This one waits for it.", held.busy, workdir, who)
    fcntl.flock(file, fcntl.LOCK_EX)
    return ""
  if holder and holder.get("host") != platform.node():
    logger.warning(
      "The run before in %s, %s, did not end by itself. If it may still run there, stop it: not "
      "every file system keeps locks between hosts.",
      *(workdir, _name(holder)),
    )
  return ""


def _check(workdir: epath.Path, held: IO[str] | Lease | None) -> Callable[[], None]:
  """A function that raises if what is held is no longer there, or no longer ours."""
  if held is None:
    return lambda: None
  if not isinstance(held, Lease):
    return _still_there(workdir, held)

  def check() -> None:
    if who := held.check():
      raise OSError(
        f"This process gave no sign of life for too long, so {who} has taken {workdir} over. It "
        "stops, and leaves the run to the other."
      )

  return check


def _still_there(workdir: epath.Path, file: IO[str]) -> Callable[[], None]:
  """A function that raises if `workdir` is no longer the folder in which `file` is."""
  began = os.stat(workdir)
  file.seek(0)
  ours = file.read()

  def check() -> None:
    with contextlib.suppress(OSError):
      if os.path.samestat(began, os.stat(workdir)):
        return
      # Some mounted buckets give a folder another number after a while.
      if Path(file.name).read_text(encoding="utf-8") == ours:
        return
    raise OSError(
      f"The workdir {workdir} was renamed, removed or replaced while this process wrote to it, so "
      "it stops. Start the same command with --workdir where the folder is now: a training goes on "
      "from its newest checkpoint."
    )

  return check


def _me(task: str) -> dict[str, Any]:
  now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
  return {"host": platform.node(), "pid": os.getpid(), "since": now, "task": task}


def _read(file: IO[str]) -> dict[str, Any]:
  """Who wrote the file; nobody, if that is not to be read."""
  file.seek(0)
  try:
    holder = json_files.parse(file.read(MOST_BYTES).encode())
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _name(holder: Mapping[str, Any]) -> str:
  pid, host, since = (holder.get(key, "?") for key in ("pid", "host", "since"))
  return f"process {pid} on {host}, since {since}"
