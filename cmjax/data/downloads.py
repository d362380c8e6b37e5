"""Published files, brought to this disk once: whole, checked, and for all processes of a host.

A file is written under another name beside its target and renamed when its sha256 is right. What a
stopped download has left is taken up where it ended. Of several processes one downloads; the others
wait for it.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, NamedTuple

import tqdm

from cmjax.base import lock, paths

logger = logging.getLogger("cmjax")

TIMEOUT = 30.0  # seconds without a byte
TRIES = 4  # in a row, of one address, without a byte in between
PAUSE = 1.0  # seconds before the second try; twice as long before each other
PIECE = 2**18  # bytes
_LOST = (OSError, http.client.HTTPException)  # URLError and timeouts are of the first


class File(NamedTuple):
  """A file as it was published.

  Attributes:
    name: on the disk.
    urls: where it is; the first that answers is taken.
    num_bytes: of it.
    sha256: of it.
  """

  name: str
  urls: tuple[str, ...]
  num_bytes: int
  sha256: str


class _Refused(Exception):
  """An address has not the file; another try will not help."""


def fetch(file: File, folder: str | os.PathLike[str], *, key: str) -> Path:
  """The path of the file in a folder, downloaded if it is not there.

  Args:
    file: which.
    folder: where downloads are kept.
    key: of the config, that names the folder: for messages.

  Raises:
    ValueError: it cannot be had; with the address and the place for a copy made by hand.
  """
  target = paths.local(folder, key) / file.name
  if _is_sound(target, file):
    return target
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"Cannot make the folder {target.parent}: {error.strerror}. Set {key}.") from (
      error
    )
  if not os.access(target.parent, os.W_OK):
    raise ValueError(f"Cannot write to {target.parent}. Set {key} to another folder.")
  with lock.hold(target.parent, "download", wait=True):
    if not _is_sound(target, file):
      if target.exists():
        logger.warning("%s is damaged: it is downloaded again.", target)
      _download(file, target, key)
  return target


def _is_sound(path: Path, file: File) -> bool:
  """Whether the file is there with its bytes."""
  if not path.is_file() or path.stat().st_size != file.num_bytes:
    return False
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _download(file: File, target: Path, key: str) -> None:
  """Brings the file from the first address that has it."""
  partial, reasons = target.with_name(f"{target.name}.part"), []
  _check_space(file, partial, key)
  logger.info("Downloading %s (%s) to %s ...", file.name, _size(file.num_bytes), target.parent)
  for url in file.urls:
    for _ in range(2):  # what is damaged is made again once: a part may be of an older try
      try:
        _bring(url, file, partial)
      except _Refused as error:
        reasons.append(f"{url}: {error}")
        break
      if _is_sound(partial, file):
        os.replace(partial, target)
        return
      partial.unlink(missing_ok=True)
      logger.warning("What came from %s is not the published file.", url)
    else:
      reasons.append(f"{url}: other bytes came than those that were published")
  raise ValueError(
    f"Cannot download {file.name} ({'; '.join(reasons)}). Where there is a network, run: "
    f"curl -L -o {file.name} {file.urls[0]} and put the file at {target}."
  )


def _bring(url: str, file: File, partial: Path) -> None:
  """Adds to the partial file until it has all bytes; tries again where the connection is lost."""
  tries = 0
  while (start := _length(partial)) < file.num_bytes:
    why = "the connection ended early"
    try:
      _add(url, file, partial, start)
    except urllib.error.HTTPError as error:
      error.close()
      why = f"the server answers {error.code} {error.reason}"
      if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        partial.unlink()
        why = f"the file there ends before {_size(start)}"
      if error.code < 500:
        raise _Refused(why) from error
    except _LOST as error:
      why = _reason(error)
    end = _length(partial)
    if end >= file.num_bytes:
      return
    tries = 1 if end > start else tries + 1
    if tries >= TRIES:
      raise _Refused(why)
    logger.info("%s: %s. Trying again, from %s.", url, why, _size(end))
    time.sleep(PAUSE * 2 ** (tries - 1))


def _add(url: str, file: File, partial: Path, start: int) -> None:
  """Asks for the bytes from `start` on, and adds those that come."""
  headers = {"User-Agent": "cmjax", "Accept-Encoding": "identity"}
  if start:
    headers["Range"] = f"bytes={start}-"
  request = urllib.request.Request(url, headers=headers)
  with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
    begins = _begins_at(answer, start)
    with _written(partial) as stream, _progress(file, begins) as bar:
      stream.truncate(begins)
      left = file.num_bytes + 1 - begins  # one more shows that it is another file
      while left and (piece := answer.read(min(PIECE, left))):
        _write(stream, piece, partial)
        left -= len(piece)
        bar.update(len(piece))


def _begins_at(answer: http.client.HTTPResponse, start: int) -> int:
  """The place in the file of the first byte of an answer: a server may send all of it."""
  if answer.status != HTTPStatus.PARTIAL_CONTENT:
    return 0
  said = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
  if said != str(start):
    raise _Refused(f"the server answers with the bytes from {said!r:.40} on, not from {start}")
  return start


def _written(partial: Path) -> IO[bytes]:
  try:
    return open(partial, "ab")
  except OSError as error:
    raise ValueError(f"Cannot write {partial}: {error.strerror}.") from error


def _write(stream: IO[bytes], piece: bytes, partial: Path) -> None:
  try:
    stream.write(piece)
  except OSError as error:
    raise ValueError(
      f"Cannot write {partial}: {error.strerror}. Free some space, and start the same command "
      "again: what came so far is kept."
    ) from error


@contextlib.contextmanager
def _progress(file: File, done: int) -> Iterator[tqdm.tqdm]:
  """A bar where there is a terminal; without one, the lines of the log say enough."""
  with tqdm.tqdm(
    total=file.num_bytes, initial=done, desc=file.name, unit="B", unit_scale=True, disable=None
  ) as bar:
    yield bar


def _check_space(file: File, partial: Path, key: str) -> None:
  need, free = file.num_bytes - _length(partial), shutil.disk_usage(partial.parent).free
  if need > free:
    raise ValueError(
      f"{file.name} needs {_size(need)} more in {partial.parent}, where {_size(free)} are free. "
      f"Free some space, or set {key} to another folder."
    )


def _length(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
  reason = getattr(error, "reason", error)  # of a URLError
  return " ".join(str(reason).split()) or type(reason).__name__


def _size(num_bytes: int) -> str:
  return f"{num_bytes / 1e6:.1f} MB"
