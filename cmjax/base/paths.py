"""One way from a string to a path, for every flag and every key of a config, in every mode."""

import os
import re
import unicodedata
from pathlib import Path

from etils import epath

from cmjax.base import stores

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# Of text that runs from right to left: they show a name as another one.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def local(path: str | os.PathLike[str], what: str = "path") -> Path:
  """The path that a user means: ~ is a home folder, and what is relative stays so.

  Args:
    path: as it was typed.
    what: it is, for the message: "--workdir".

  Raises:
    ValueError: it is empty, a URL, of a user that is not there, or has control characters.
  """
  text = _text(path, what)
  if match := _SCHEME.match(text):
    name = match[1]
    advice = f"Drop the {name}://." if name == "file" else "Mount it, and give the folder."
    raise ValueError(f"{what}={text!r} is a URL, and {name}:// is not served here. {advice}")
  expanded = os.path.expanduser(text)  # of the text: pathlib takes ./~x for ~x
  if expanded.startswith("~"):
    raise ValueError(f"{what}={text!r}: that user has no home folder here. Give the whole path.")
  return Path(expanded)


def place(path: str | os.PathLike[str], what: str = "path") -> epath.Path:
  """Where a run is or will be: a folder of a disk, as `local` has it, or one in a bucket.

  Args:
    path: as it was typed: runs/cifar10, gs://bucket/cifar10, s3://bucket/cifar10.
    what: it is, for the message: "--workdir".

  Raises:
    ValueError: as in `local`; or a URL that nothing here can serve, in one line that says why.
  """
  text = _text(path, what)
  match = _SCHEME.match(text)
  if match is None or match[1].lower() == "file":
    return epath.Path(local(text, what))
  if match[1].lower() not in stores.PACKAGES:
    raise ValueError(
      f"{what}={text!r} is a URL, and {match[1]}:// is not served here: a run is on a disk, at "
      "gs:// or at s3://. Mount it, and give the folder."
    )
  scheme, rest = match[1].lower(), text[match.end() :]
  bucket, *names = rest.removeprefix("/").rstrip("/").split("/")
  if not bucket or not rest.startswith("/") or {"", ".", ".."} & set(names):
    raise ValueError(f"{what}={text!r} names no folder of a bucket: {scheme}://bucket/folder does.")
  try:
    stores.serve(scheme)
  except ValueError as error:
    raise ValueError(f"{what}={text!r}: {error}") from error
  return epath.Path(f"{scheme}://" + "/".join((bucket, *names)))


def absolute(path: epath.Path) -> epath.Path:
  """The whole path, which stays the same if the process goes to another folder."""
  return path if stores.is_remote(path) else path.absolute()  # epath takes a URL for relative


def _text(path: str | os.PathLike[str], what: str) -> str:
  text = os.fspath(path)
  if not text:
    raise ValueError(f"{what}={text!r} names nothing. Give a path; this folder is '.'.")
  if any(unicodedata.category(char) == "Cc" or char in _TURNS for char in text):
    raise ValueError(f"{what}={text!r} has characters that no name should have. Rename it.")
  return text
