"""One writer at a time where the kernel locks nothing: a lease, which its holder renews.

A lease is a file in a folder of its own, `lock.lease/000007.json`, with its holder's name and a
beat that changes every `RENEW` seconds. The highest number counts. Who finds no lease, or one that
was let go, or one that has not changed for `DEAD` seconds, writes the next number; of two who do
so at once one is refused, by the store, or where it does not look, by reading back after a while.
A holder who finds a higher number than his own has lost the lease, and must not write any more.
"""

import contextlib
import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import json_files, place, stores
from cmjax.base.atomic_files import write_json, write_text

logger = logging.getLogger("cmjax")
RENEW = 15.0  # seconds between two beats
DEAD = 90.0  # seconds without one, after which a holder is taken for dead
_SETTLED = 2.0  # seconds, in which two who wrote the same file at once see the later of the two
_LOOK = 3.0  # seconds between two looks at a lease of somebody else
_NAME = re.compile(r"\d{6,}\.json")


class Found(NamedTuple):
  """The newest lease of a folder.

  Attributes:
    number: of it; 0 where there is none.
    content: what its file says; {} where that cannot be read.
  """

  number: int
  content: dict[str, Any]

  @property
  def free(self) -> bool:
    """Whether nobody holds it."""
    return self.number == 0 or bool(self.content.get("ended"))


class Held(Exception):
  """Somebody alive holds the lease; what its file says is the argument."""


class Lease:
  """A lease that is held, and renewed by a thread.

  Args:
    folder: where the leases of one thing are.
    about: what its file says of the holder: host, pid, since, task.
    creates: whether of two who create a file the place refuses one.
    clock: seconds, from any origin.
    sleep: waits for seconds.
  """

  def __init__(
    self,
    folder: epath.Path,
    about: Mapping[str, Any],
    *,
    creates: bool,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Any] = time.sleep,
  ):
    self._folder, self._creates, self._clock, self._sleep = folder, creates, clock, sleep
    self._content = {**about, **_process(), "token": secrets.token_hex(8), "beat": 0}
    self.number, self._renewed, self._lost = 0, clock(), ""
    self._ends, self._writing = threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

  def take(self, *, wait: bool = False, say: Callable[[Mapping[str, Any]], Any] = bool) -> None:
    """Takes the lease, from a dead holder too; starts to renew it.

    Args:
      wait: for a holder who is alive.
      say: is told once of a holder whose end is waited for.

    Raises:
      Held: somebody alive holds it.
      OSError: the place cannot be written.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    while True:
      before = newest(self._folder)
      if not before.free and not self._outlive(before, wait, say):
        continue  # another lease is there by now
      if self._write_next(before):
        break
    self._forget_before()
    self._thread.start()

  def _outlive(self, before: Found, wait: bool, say: Callable[[Any], Any]) -> bool:
    """Whether a holder is dead, for which it waits; False if there is a newer lease by now."""
    lives = _lives_here(before.content)
    if lives is False:
      return True
    silent_since = self._clock() - self._age(before)
    if lives and not wait and self._clock() - silent_since < DEAD:
      raise Held(before.content)
    if self._clock() - silent_since < DEAD:
      logger.info(
        "Checking for at most %.0f s whether its holder is alive: %s.", DEAD, self._folder
      )
    while self._clock() - silent_since < DEAD:
      self._sleep(_LOOK)
      now = newest(self._folder)
      if now.number != before.number or now.free:
        return False
      if now.content != before.content:
        if not wait:
          raise Held(now.content)
        say(now.content)
        before, silent_since = now, self._clock()
    name = before.content
    logger.warning(
      "Process %s on %s held %s and has given no sign of life for %.0f s: it is taken over.",
      *(name.get("pid", "?"), name.get("host", "?"), self._folder, DEAD),
    )
    return True

  def _age(self, found: Found) -> float:
    """Seconds since a lease was renewed, by the clock of the place; 0 where that is not known."""
    now = self._folder / f"now-{secrets.token_hex(8)}"
    try:
      write_text(now, "")
      return max(0.0, age(_path(self._folder, found.number), now))
    except (OSError, KeyError, TypeError):
      return 0.0
    finally:
      with contextlib.suppress(OSError):
        now.unlink()

  def _write_next(self, before: Found) -> bool:
    """Whether the next lease is ours."""
    number = before.number + 1
    path = _path(self._folder, number)
    try:
      if self._creates:
        place.create(path, json.dumps(self._content).encode())
      elif path.exists():
        return False
      else:
        write_json(path, self._content, indent=None)
        self._sleep(_SETTLED)
    except FileExistsError:
      pass  # ours too, where the answer to the first try was lost
    found = newest(self._folder)
    if (found.number, found.content.get("token")) != (number, self._content["token"]):
      return False
    self.number, self._renewed = number, self._clock()
    return True

  def _forget_before(self) -> None:
    for path in self._folder.iterdir():
      if _NAME.fullmatch(path.name) and int(path.name[:-5]) < self.number:
        with contextlib.suppress(OSError):
          path.unlink()

  def _beat(self) -> None:
    while not self._ends.wait(RENEW):
      try:
        self.renew()
      except Exception as error:  # whatever it is, `check` sees that no beat was written
        logger.debug("The lease %s was not renewed: %r", self._folder, error)

  def renew(self) -> None:
    """Says that the holder lives; finds out whether the lease is lost."""
    with self._writing:
      if self._lost or self._ends.is_set():
        return
      began, found = self._clock(), newest(self._folder)
      theirs = found.content.get("token", self._content["token"])
      if found.number != self.number or theirs != self._content["token"]:
        pid, host = (found.content.get(key, "?") for key in ("pid", "host"))
        self._lost = (
          f"process {pid} on {host}" if found.number else "somebody who removed its lease"
        )
        return
      self._content["beat"] += 1
      write_json(_path(self._folder, self.number), self._content, indent=None)
      self._renewed = began

  def check(self) -> str:
    """Who has taken the lease from this process; "" for nobody.

    Where no beat could be written for so long that another may have taken it, it looks first.
    """
    if not self._lost and self._clock() - self._renewed > DEAD - 2 * RENEW:
      self.renew()
    return self._lost

  def let_go(self) -> None:
    """Ends the lease: the next need not wait."""
    self._ends.set()
    with self._writing:
      found = newest(self._folder)
      if found.content.get("token") == self._content["token"]:
        ended = {**self._content, "ended": True}
        write_json(_path(self._folder, self.number), ended, indent=None)


def newest(folder: epath.Path) -> Found:
  """The lease that counts in a folder."""
  names = []
  with contextlib.suppress(FileNotFoundError):
    names = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)]
  number = max((int(name[:-5]) for name in names), default=0)
  content: Any = {}
  if number:
    with contextlib.suppress(ValueError, FileNotFoundError):
      content = json_files.read(_path(folder, number))
  return Found(number, content if isinstance(content, dict) else {})


def holds(folder: epath.Path) -> bool:
  """Whether the newest lease of a folder is held by somebody who lives, seen without waiting."""
  found = newest(folder)
  if found.free:
    return False
  lives = _lives_here(found.content)
  if lives is not None:
    return lives
  written = _path(folder, found.number).stat().mtime
  return time.time() - float(written) < DEAD


def age(path: Any, now: Any) -> float:
  """Seconds from when a file was written to when another, `now`, was, by their place's clock."""
  if stores.is_remote(path):
    return stores.age(path, now)
  return os.stat(now).st_mtime - os.stat(path).st_mtime


def _path(folder: epath.Path, number: int) -> epath.Path:
  return folder / f"{number:06d}.json"


def _process() -> dict[str, Any]:
  """By what this process is known to others of its machine; {} where it is not."""
  try:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
      boot = file.read().strip()
    return {
      "machine": f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}",
      "born": _born(os.getpid()),
    }
  except OSError:
    return {}


def _born(pid: int) -> str:
  """When a process started, in ticks since the machine did."""
  with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
    return file.read().rpartition(")")[2].split()[19]


def _lives_here(content: Mapping[str, Any]) -> bool | None:
  """Whether a holder is a process of this machine that lives; None: not known."""
  here, pid = _process(), content.get("pid")
  if not here or content.get("machine") != here["machine"] or not isinstance(pid, int):
    return None
  try:
    return _born(pid) == content.get("born")
  except FileNotFoundError:
    return False
  except OSError:
    return None
