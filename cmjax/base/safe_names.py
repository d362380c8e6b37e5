"""Names of files as a manifest or an archive gives them: made safe to join to a folder, or refused.

A name is a claim of whoever wrote the file. Joined to a folder as it is, `../../.bashrc` or
`/etc/passwd` leaves it. One rule holds on every system, since a set that is made on one is read on
another.
"""

import posixpath
import re

from cmjax.base.printable import shown

MAX_PART, MAX_NAME = 255, 4096  # bytes, as file systems have it
_REASONS = {  # why a name is refused -> what shows it
  "it has control characters": r"[\x00-\x1f\x7f-\x9f\u2028\u2029]",
  "it has characters that turn the order of letters": r"[\u200e\u200f\u202a-\u202e\u2066-\u2069]",
  "it is no text": r"[\ud800-\udfff]",
  "it has a backslash": r"\\",
  "it begins at the root": r"^/",
  "it leaves its folder by '..'": r"(?:^|/)\.\.(?:/|$)",
  "it has a drive letter": r"(?:^|/)[A-Za-z]:",
  "it is the name of a device": r"(?i:(?:^|/)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|/|$))",
}
_REFUSED = {reason: re.compile(pattern) for reason, pattern in _REASONS.items()}


def relative(name: object) -> str:
  """The name with slashes and without "." and empty parts: it stays in the folder it is joined to.

  >>> relative("./cats//1.png")
  'cats/1.png'

  Raises:
    ValueError: it is no name, or leads out of its folder, or to a device, on any system.
  """
  if not isinstance(name, str):
    raise ValueError(f"the file name {shown(name)} is refused: it is no text")
  for reason, pattern in _REFUSED.items():
    if pattern.search(name):
      raise ValueError(f"the file name {shown(name)} is refused: {reason}")
  made = posixpath.normpath(name) if name else "."
  if made == ".":
    raise ValueError(f"the file name {shown(name)} is refused: it names no file")
  longest = max(len(part.encode()) for part in made.split("/"))
  if longest > MAX_PART or len(made.encode()) > MAX_NAME:
    raise ValueError(
      f"the file name {shown(name)} is refused: at most {MAX_PART} bytes a part, and {MAX_NAME}"
    )
  return made


def flat(name: object) -> str:
  """The name of a file right in a folder: as `relative`, and without a folder before it.

  Raises:
    ValueError: as `relative`, or it has a slash, or parts that say nothing.
  """
  made = relative(name)
  if made != name or "/" in made:
    raise ValueError(f"the file name {shown(name)} is refused: it must lie right in its folder")
  return made
