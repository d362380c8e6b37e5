"""Whether all processes of a run see one folder, and not each its own at one path.

Otherwise a run goes on until its first checkpoint, and its processes then wait for each other's
files for ever.
"""

import contextlib
import platform
import secrets
import time

from etils import epath

from cmjax.base import meeting, sharding
from cmjax.base.atomic_files import write_text

PATIENCE = 10.0  # seconds: mounted buckets and NFS show a file of another host a little later
_RETRY = 0.25


def check(folder: epath.Path, what: str = "workdir") -> None:
  """Raises on every process if one of them does not see a file that the first has just written.

  Args:
    folder: of the run; each process must call this.
    what: it is, for the message.

  Raises:
    ValueError: it names the hosts that do not see it, or why none can.
  """
  index, count = sharding.process()
  if count == 1:
    return
  token, refusal = secrets.token_hex(16), ""
  path = folder / f".seen-by-all.{token}"
  if index == 0:
    try:
      write_text(path, token)
    except OSError as error:
      refusal = error.strerror or str(error)
  try:
    # The file is there before any looks: a name that was not found may be remembered as missing.
    written = meeting.exchange(f"a first look at the {what}", [path.name, token, refusal])[0]
    sees = not written[2] and _sees(folder / written[0], written[1])
    seen = meeting.exchange(f"who sees the {what}", [platform.node(), sees])
  finally:
    if index == 0:
      with contextlib.suppress(OSError):
        path.unlink()
  if written[2]:
    raise ValueError(f"Process 0 cannot write to the {what} {folder}: {written[2]}.")
  blind = {i: host for i, (host, sees) in enumerate(seen) if not sees}
  if blind:
    does = "does" if len(blind) == 1 else "do"
    raise ValueError(
      f"Not every process sees the same {what} {folder}: {meeting.named(blind)} {does} not see "
      f"what process 0 on {seen[0][0]} writes there. All hosts need one folder at that path: on a "
      "file system that they share, or in a bucket that each has mounted."
    )


def _sees(path: epath.Path, content: str) -> bool:
  """Whether a file is there with this content, now or a little later."""
  deadline = time.monotonic() + PATIENCE
  while True:
    with contextlib.suppress(OSError, UnicodeDecodeError):
      if path.read_text() == content:
        return True
    if time.monotonic() > deadline:
      return False
    time.sleep(_RETRY)
