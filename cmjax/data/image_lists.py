"""The one finder of pictures: which files of a folder or .zip are pictures, and their labels.

| a file | what becomes of it |
|---|---|
| named like a format of `image_files` | a picture, damaged if it is none |
| named like a format that is not read, or a picture by its first bytes only | an error |
| left by a system (`.DS_Store`, `Thumbs.db`, all in `__MACOSX`), or hidden | passed over, counted |
| anything else | passed over, counted by its suffix |

Classes are those of a dataset.json (EDM's), of a file that `labels` names, or else the subfolders,
where all pictures lie right in one. Everything in between is an error: shards and splits look like
classes, and training on them would give no error.
"""

import collections
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cmjax.base import json_files, limits, paths
from cmjax.base.printable import printable, shown
from cmjax.data import image_headers

logger = logging.getLogger("cmjax")

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOMENTS = (".npy",)  # of EDM2's data sets: mean and std of latents
MOMENTS_HINT = " If the .npy are latents of EDM2's dataset tool: cmjax prepare --moments."
UNREAD_SUFFIXES = tuple(
  ".avif .avifs .heic .heif .jxl .jp2 .j2k .jpx .ppm .pgm .pbm .pnm .pfm .tga .pcx .exr .hdr .dds "
  ".qoi .psd .svg .eps .apng .dib .dcm .fits .raw .dng .cr2 .cr3 .nef .arw .orf .rw2".split()
)
SYSTEM_FILES = tuple("thumbs.db ehthumbs.db desktop.ini icon\r .ds_store .localized".split(" "))
SYSTEM_FOLDERS = (
  *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
  *(".appledouble", ".spotlight-v100", ".trashes", ".fseventsd"),
)
SPLIT_NAMES = tuple("train training val valid validation test testing eval dev".split())
LABELS_FILE = "dataset.json"
SNIFFED = 16  # files of each suffix that no picture has, of which the first bytes are looked at
EMPTY = "add some, or remove what holds none."
GIVE_LABELS = (
  "Give labels (--labels of cmjax prepare, data.folder.labels of a config): a JSON file "
  "{name: class}, or none"
)


class Files(NamedTuple):
  """What there is: names relative to the set, with slashes, and folders right in it."""

  names: Sequence[str]
  folders: Sequence[str]


class Listing(NamedTuple):
  """The pictures of a set.

  Attributes:
    names: sorted, a folder's together.
    labels: of each, numbers or text; None without classes.
    passed_over: reason -> number of other files.
  """

  names: list[str]
  labels: list[Any] | None
  passed_over: dict[str, int]


def scan(root: Path) -> Files:
  """Everything below a folder that is not a folder, links and what is no regular file included.

  Raises:
    ValueError: a folder cannot be read, or leads back to itself by a link.
  """
  names: list[str] = []
  folders: list[str] = []
  waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
  while waiting:
    prefix, above = waiting.pop()
    try:
      status = (root / prefix).stat()
      this = (status.st_dev, status.st_ino)
      if this in above:
        link = printable(str(root / prefix))
        raise ValueError(f"The link {link} leads back to a folder that it is in.")
      with os.scandir(root / prefix) as entries:
        for entry in entries:
          name = prefix + entry.name
          if entry.is_dir():
            waiting.append((f"{name}/", (*above, this)))
            folders += [] if prefix else [name]
          else:
            names.append(name)
    except OSError as error:
      folder = printable(str(root / prefix))
      raise ValueError(f"Cannot read the folder {folder}: {error.strerror}.") from error
  return Files(names, folders)


def of_folder(path: Path, labels: str | None, suffixes: Sequence[str] = SUFFIXES) -> Listing:
  """The pictures of a folder; see `find`."""

  def head(name: str) -> bytes:
    if not (path / name).is_file():  # a link to nothing, or a pipe
      return b""
    with (path / name).open("rb") as file:
      return file.read(image_headers.HEAD_BYTES)

  table = lambda: json_files.read(path / LABELS_FILE)
  return find(scan(path), str(path), labels=labels, head=head, table=table, suffixes=suffixes)


def num_pictures(path: Path) -> int:
  """How many files of a folder are pictures by their names."""
  return len(_sort_out(scan(path).names)[0])


def find(
  files: Files,
  where: str,
  *,
  labels: str | None,
  head: Callable[[str], bytes],
  table: Callable[[], Any],
  suffixes: Sequence[str] = SUFFIXES,
) -> Listing:
  """The pictures among files, and their labels.

  Args:
    files: of a folder or a .zip.
    where: that is, for the errors.
    labels: None: as the set has them; "none": no classes; or the path of a JSON file.
    head: the first bytes of one of the files, `image_headers.HEAD_BYTES` or more.
    table: what LABELS_FILE holds, where it is one of the files.
    suffixes: of what is looked for; others than of pictures: `MOMENTS`.

  Raises:
    ValueError: there are no pictures, some would be lost, or the classes cannot be told.
  """
  names, others, passed_over = _sort_out(files.names, suffixes)
  _check_unread(others, where, len(names), head)
  passed_over |= _by_suffix(name for name in others if name != LABELS_FILE)
  if not names:
    also = f" Passed over: {told(passed_over)}." if passed_over else ""
    read = image_headers.READ if suffixes == SUFFIXES else ", ".join(suffixes)
    also += MOMENTS_HINT * (".npy" in passed_over)
    raise ValueError(f"There are no pictures ({read}) in {where}.{also}")
  if odd := [name for name in names if not name.isascii() and _is_odd(name)]:
    raise ValueError(f"The name of a picture in {where} is no UTF-8: {odd[0]!a}. Rename it.")
  listing = Listing(names, None, passed_over)
  if labels == "none":
    return listing
  if labels is not None:
    path = paths.local(labels)
    if not path.is_file():
      raise ValueError(f"labels={labels!r} is no JSON file. Give its path, or 'none'.")
    read = lambda: json_files.read(path)
    return listing._replace(labels=_from_json(read, names, str(path), of_set=False))
  if LABELS_FILE in others:
    source = f"{where}/{LABELS_FILE}"
    return listing._replace(labels=_from_json(table, names, source, of_set=True))
  folders = {*files.folders, *(name.split("/")[0] for name in files.names if "/" in name)}
  return listing._replace(labels=_by_folder(names, folders, where))


def told(passed_over: dict[str, int]) -> str:
  """Counts by reason, in words.

  >>> told({"hidden": 2, ".txt": 1200})
  '1,200 .txt, 2 hidden'
  """
  return ", ".join(f"{n:,} {reason}" for reason, n in sorted(passed_over.items()))


def _sort_out(
  names: Iterable[str], suffixes: Sequence[str] = SUFFIXES
) -> tuple[list[str], list[str], dict[str, int]]:
  """Pictures by their names, other files, and how many are hidden or a system's."""
  pictures, others, counts = [], [], collections.Counter()
  for name in names:
    parts = name.split("/")
    if parts[-1].lower() in SYSTEM_FILES or parts[-1].startswith("._"):
      counts["system files"] += 1
    elif any(part.lower() in SYSTEM_FOLDERS for part in parts[:-1]):
      counts["system files"] += 1
    elif any(part.startswith(".") for part in parts):
      counts["hidden"] += 1
    else:
      (pictures if _suffix(name) in suffixes else others).append(name)
  by_parts = lambda name: name.split("/")
  return sorted(pictures, key=by_parts), sorted(others, key=by_parts), dict(counts)


def _is_odd(name: str) -> bool:
  """Whether a name has bytes that are no UTF-8, which Python keeps as lone surrogates."""
  return any("\ud800" <= letter <= "\udfff" for letter in name)


def _suffix(name: str) -> str:
  return PurePosixPath(name).suffix.lower()


def _by_suffix(names: Iterable[str]) -> dict[str, int]:
  return dict(collections.Counter(printable(_suffix(name)) or "without a suffix" for name in names))


def _check_unread(
  others: list[str], where: str, num_pictures: int, head: Callable[[str], bytes]
) -> None:
  """Raises where files are pictures, but would be passed over."""
  lost = [name for name in others if _suffix(name) in UNREAD_SUFFIXES]
  if lost:
    raise ValueError(
      f"{where} has {len(lost):,} files of formats that are not read "
      f"({told(_by_suffix(lost))}), such as {printable(lost[0])}, beside "
      f"{num_pictures:,} pictures. Convert them to PNG, or move them elsewhere."
    )
  looked_at = collections.Counter()
  for name in others:
    looked_at[_suffix(name)] += 1
    if looked_at[_suffix(name)] > SNIFFED or name == LABELS_FILE:
      continue
    kind = image_headers.sniff(head(name)[: image_headers.HEAD_BYTES])
    if kind and kind not in image_headers.NO_PICTURES:
      raise ValueError(
        f"{where} has pictures that their names do not show: {printable(name)} begins as "
        f"{kind}, and {len([n for n in others if _suffix(n) == _suffix(name)]):,} files have that "
        f"suffix. Rename them (to end in {', '.join(SUFFIXES[:2])} ...), or move them elsewhere."
      )


def _by_folder(names: list[str], folders: Iterable[str], where: str) -> list[str] | None:
  """The subfolder of each picture, where those are classes; None where there are none."""
  depths = {name.count("/") for name in names}
  if depths == {0}:
    return None
  if depths != {1}:
    deepest = max(names, key=lambda name: name.count("/"))
    raise ValueError(
      f"{where} has pictures at several levels, or deeper than a subfolder, such as "
      f"{printable(deepest)}. Subfolders of one level are classes: give the path of one "
      f"split. {GIVE_LABELS}."
    )
  labels = [name.split("/")[0] for name in names]
  shown = [f for f in folders if not f.startswith(".") and f.lower() not in SYSTEM_FOLDERS]
  if empty := sorted(set(shown) - set(labels)):
    named = printable(", ".join(empty))
    raise ValueError(f"No pictures in the subfolders {named} of {where}: {EMPTY}")
  if {label.lower() for label in labels} <= set(SPLIT_NAMES):
    raise ValueError(
      f"The subfolders of {where} are splits ({', '.join(sorted(set(labels)))}), not classes. Give "
      f"the path of one, {where}/{labels[0]}. {GIVE_LABELS}."
    )
  if _are_shards(names):
    raise ValueError(
      f"The subfolders of {where} look like shards, not classes, such as "
      f"{printable(names[-1])}: they follow from the names of the files. {GIVE_LABELS}."
    )
  return labels


def _are_shards(names: list[str]) -> bool:
  """Whether folders only keep the number of files in one small.

  So it is where file n lies in folder n // 1000 (EDM, FFHQ; or another power of ten from 100), and
  where a folder has the first digits of the hashes that files are named by.
  """
  pairs = [(p.parts[0], p.stem) for p in map(PurePosixPath, names)]
  if all(
    re.fullmatch(r"[0-9a-f]{1,4}", folder)
    and re.fullmatch(r"[0-9a-f-]{16,}", stem)
    and stem.startswith(folder)
    for folder, stem in pairs
  ):
    return True
  numbered = [(folder, re.search(r"(\d+)$", stem)) for folder, stem in pairs]
  if not all(folder.isdecimal() and number for folder, number in numbered):
    return False
  places = [(int(folder), int(number[1])) for folder, number in numbered if number]
  several = len({folder for folder, _ in numbered}) > 1 or len(numbered[0][0]) >= 4
  return several and any(
    all(number // size == folder for folder, number in places) for size in (100, 1000, 10_000)
  )


def _from_json(
  read: Callable[[], Any], names: list[str], where: str, *, of_set: bool
) -> list[Any] | None:
  """The label of each name: of EDM's {"labels": [[name, class], ...]}, or of {name: class}."""
  try:
    content = read()
    if not isinstance(content, dict):
      raise ValueError(f"it is {shown(content)}")
    pairs = content.get("labels", content)
    if pairs is None:
      return None
    table = dict(pairs)
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(
      f"{where}: {printable(str(error))[:500]}. It must be JSON: {{name: class}}, or "
      "{'labels': [[name, class], ...]}."
    ) from error
  if len(table) < len(pairs):
    twice, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
    twice = printable(str(twice))[:500]
    raise ValueError(f"{where} names some pictures more than once, such as {twice}. Keep one.")
  table = {str(PurePosixPath(str(name).replace("\\", "/"))): label for name, label in table.items()}
  missing = [name for name in names if name not in table]
  if missing:
    raise ValueError(
      f"{where} has no label for {len(missing)} of {len(names)} pictures, such as "
      f"{printable(missing[0])}. Add them, or remove the pictures."
    )
  if absent := sorted(table.keys() - set(names)):
    such = printable(absent[0])[:500]
    what = f"{where} names {len(absent)} pictures that are not there, such as {such}."
    if of_set:
      raise ValueError(f"{what} Add the pictures, or remove their entries.")
    logger.warning("%s They are passed over.", what)
  return [table[name] for name in names]


def number_classes(
  names: Sequence[str],
  labels: Sequence[Any] | None,
  num_classes: int | None,
  class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray | None, list[str]]:
  """Labels as int32 and the names of the classes.

  Text is numbered by sorted name; numbers are what they are, below `num_classes`.
  """
  if labels is None:
    if num_classes:
      raise ValueError(f"num_classes={num_classes}, but there are no labels. Give --labels.")
    return None, []
  if all(isinstance(label, str) for label in labels):
    class_names = sorted(set(labels))
    numbers = {name: i for i, name in enumerate(class_names)}
    labels = [numbers[label] for label in labels]
    if num_classes not in (None, len(class_names)):
      raise ValueError(f"num_classes={num_classes}, but there are {len(class_names)} class names.")
    return np.array(labels, np.int32), class_names
  count = num_classes or (len(class_names) if class_names else None)
  for name, label in zip(names, labels, strict=True):
    whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not whole or label < 0 or (count is not None and label >= count):
      raise ValueError(
        f"The label of {printable(name)} is {shown(label)}: labels must be whole numbers from 0 up"
        f"{f' to {count - 1}' if count else ''}, or all text. Correct it, or give --num_classes."
      )
  count = count or max(labels) + 1
  if num_classes is None:  # else the user says so
    limits.check("classes", count, f"the labels of this source speak of {shown(count)} classes")
  numbered = np.array(labels, np.int32)
  empty = np.flatnonzero(np.bincount(numbered, minlength=count) == 0)
  if len(empty) and num_classes is None:
    raise ValueError(
      f"{len(empty)} of {count} classes have no picture, such as {int(empty[0])}. Renumber them, "
      f"or say that it is meant: --num_classes={count}."
    )
  known = list(class_names or ())
  return numbered, [known[i] if i < len(known) else str(i) for i in range(count)]
