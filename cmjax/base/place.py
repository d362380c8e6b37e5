"""What the place of a run can do: tried once at the start, whatever it is called.

A disk can do all. In an object store no folder is renamed, nothing is appended to, and the kernel
locks nothing. Mounted buckets are between the two, each in its own way.
"""

import errno
import fcntl
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import stores

logger = logging.getLogger("cmjax")
LISTED_WITHIN = 10.0  # seconds, for a file to be in its folder's list
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class Capabilities(NamedTuple):
  """What a place can do.

  Attributes:
    renames_folders: a folder is renamed at once, so that one is there whole or not at all.
    appends: lines can be added to a file.
    locks: the kernel's locks (flock(2)) are there.
    creates: of two that create the same file one is refused.
  """

  renames_folders: bool
  appends: bool
  locks: bool
  creates: bool


def capabilities(workdir: str | os.PathLike[str]) -> Capabilities:
  """What the place of a workdir can do; the workdir is made if it is not there.

  Raises:
    OSError: it cannot be written, or does not show what was written.
  """
  return _tried(os.path.abspath(workdir) if not stores.is_remote(workdir) else os.fspath(workdir))


@functools.cache
def _tried(workdir: str) -> Capabilities:
  folder = epath.Path(workdir)
  if stores.is_remote(folder) and not stores.has_bucket(folder):
    bucket = workdir.split("/")[2]
    raise OSError(
      errno.ENOENT, f"there is no bucket {bucket!r}, or it may not be read with these credentials"
    )
  folder.mkdir(parents=True, exist_ok=True)
  probe = folder / f".probe-{secrets.token_hex(8)}"
  try:
    probe.mkdir()
    (probe / "written").write_bytes(b"1")
    _wait_until_listed(probe, "written")
    tries = (_renames, _appends, _locks, _creates)
    found = Capabilities(*(_able(try_it, probe) for try_it in tries))
  finally:
    _remove(probe)
  logger.debug("%s: %s", workdir, found)
  return found


def _wait_until_listed(folder: Any, name: str) -> None:
  deadline = time.monotonic() + LISTED_WITHIN
  while name not in {path.name for path in folder.iterdir()}:
    if time.monotonic() > deadline:
      raise OSError(errno.EIO, f"a file written there is not listed after {LISTED_WITHIN:g} s")
    time.sleep(0.2)


def _able(try_it: Callable[[Any], bool], probe: Any) -> bool:
  try:
    return try_it(probe)
  except (OSError, NotImplementedError):
    return False


def _renames(probe: Any) -> bool:
  before, after = probe / "before", probe / "after"
  before.mkdir()
  (before / "inside").write_bytes(b"1")
  os.rename(before, after)
  return (after / "inside").exists() and not before.exists()


def _appends(probe: Any) -> bool:
  for piece in (b"a", b"b"):
    with open(probe / "appended", "ab") as file:
      file.write(piece)
  return (probe / "appended").read_bytes() == b"ab"


def _locks(probe: Any) -> bool:
  with open(probe / "locked", "a") as one, open(probe / "locked", "a") as other:
    fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
      fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      return error.errno in _HELD
  return False


def _creates(probe: Any) -> bool:
  create(probe / "created", b"1")
  try:
    create(probe / "created", b"2")
  except FileExistsError:
    return (probe / "created").read_bytes() == b"1"
  return False


def create(path: Any, content: bytes) -> None:
  """A file that was not there; whether the place looks says `Capabilities.creates`.

  Raises:
    FileExistsError: it is there.
  """
  if stores.is_remote(path):
    stores.create(path, content)
    return
  with open(path, "xb") as file:
    file.write(content)


def _remove(probe: Any) -> None:
  try:
    epath.Path(probe).rmtree(missing_ok=True)
  except OSError as error:
    logger.debug("%s stays: %s", probe, error)
