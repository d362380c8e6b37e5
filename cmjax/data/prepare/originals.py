"""What is to be prepared: pictures of any size by index, with labels, wherever they lie.

  a folder or .zip   of pictures; classes are its subfolders, or a dataset.json (EDM's) says them
  a folder of .parquet files   of Hugging Face: a column of {bytes, path}, and one of labels
  an .npz            {split}_images and {split}_labels
  a tfds name        such as imagenet2012, or tfds:imagenet2012 where a folder has that name too

Nothing is decoded here. Objects go to other processes, so that files are opened where they are
first read.
"""

import bisect
import functools
import io
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from cmjax.base import json_files, limits, safe_names, zip_files
from cmjax.base.printable import printable, shown
from cmjax.data import image_files, sources
from cmjax.data.prepare import parquet_files

SUFFIXES = (*image_files.SUFFIXES, ".webp", ".bmp", ".gif", ".tif", ".tiff")
LABELS_FILE = "dataset.json"


class Originals:
  """Pictures by index.

  Attributes:
    kind: of the source, in a word.
    names: of each, as errors and reports give them.
    labels: int32 [n]; None without classes, or where only `label` knows them.
    class_names: as many as there are classes.
    ignored: files beside the pictures that are passed over.
  """

  def __init__(
    self,
    kind: str,
    names: Sequence[str],
    labels: Sequence[Any] | None,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    ignored: int = 0,
  ):
    if not len(names):
      raise ValueError(f"There are no pictures in this {kind}. Check the path.")
    self.kind, self.names, self.ignored = kind, [printable(name) for name in names], ignored
    self.labels, self.class_names = _classes(names, labels, num_classes, class_names)

  def __len__(self) -> int:
    return len(self.names)

  def open(self, i: int) -> Any:
    """Picture i as Pillow opens it: a path or an open file."""
    raise NotImplementedError

  def label(self, i: int) -> int:
    """The label of picture i, where there are classes."""
    assert self.labels is not None, "there are no classes"
    return int(self.labels[i])

  def stamp(self, i: int) -> str:
    """What changes when the file of picture i does, as far as that can be seen without reading."""
    return ""

  def picture(self, i: int, convert: Sequence[str]) -> tuple[Image.Image, tuple[str, ...]]:
    """Picture i in mode L or RGB, and which conversions that took."""
    return image_files.open_picture(self.open(i), self.names[i], convert)


def find(
  source: str | os.PathLike[str],
  *,
  split: str = "train",
  labels: str | None = None,
  num_classes: int | None = None,
  image_column: str = "image",
) -> Originals:
  """The pictures of a source, by what it is.

  Args:
    source: a path, or a tfds name.
    split: of an .npz, a tfds data set or parquet files.
    labels: None: as the source has them; "none": no classes; a JSON file, or a column of parquet.
    num_classes: where it is more than the labels show; all must be below it.
    image_column: of parquet files.

  Raises:
    ValueError: there is no such source, no picture in it, or a picture without a label.
  """
  if not re.fullmatch(r"[\w.-]+", split) or safe_names.flat(split) != split:
    raise ValueError(f"split={split!r} names a folder: use letters, digits, '_', '-' and '.'.")
  text, path = str(source), Path(source).expanduser()
  options: dict[str, Any] = dict(labels=labels, num_classes=num_classes)
  if text.startswith("tfds:"):
    return Tfds(text.removeprefix("tfds:"), split, **options)
  if path.is_dir():
    tables = sorted(path.rglob("*.parquet"))
    if tables:
      return Parquet(path, _of_split(tables, split), image_column=image_column, **options)
    return Folder(path, **options)
  if path.is_file():
    readers = {".zip": Zip, ".npz": functools.partial(Npz, split=split)}
    if path.suffix.lower() not in readers:
      raise ValueError(f"{path} is a file of an unknown kind: a source is a .zip, .npz or folder.")
    return readers[path.suffix.lower()](path, **options)
  if path.suffix or text.startswith((".", "/", "~")):
    raise ValueError(f"There is nothing at {path}. Give a folder, a .zip, an .npz or a tfds name.")
  return Tfds(text, split, **options)


class Folder(Originals):
  """Files right in a folder, or in its subfolders; with a dataset.json, at any depth."""

  def __init__(self, path: Path, *, labels: str | None, num_classes: int | None):
    self._path = path
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    found = _labelled(files, labels, lambda: json_files.read(path / LABELS_FILE), str(path))
    self._files = found["names"]
    if found["by_folder"]:
      named = {name.split("/")[0] for name in found["names"]}
      empty = [p.name for p in path.iterdir() if p.is_dir() and p.name not in named]
      empty = sorted(name for name in empty if not name.startswith("."))
      if empty:
        raise ValueError(f"No pictures in the subfolders {', '.join(empty)} of {path}: {EMPTY}")
    super().__init__(
      "folder", found["names"], found["labels"], num_classes=num_classes, ignored=found["ignored"]
    )

  def open(self, i: int) -> Path:
    """The file."""
    return self._path / self._files[i]

  def stamp(self, i: int) -> str:
    """Its size, and when it was written."""
    stat = (self._path / self._files[i]).stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


class Zip(Originals):
  """The same in a .zip, EDM's among them; a folder that all files share does not count."""

  def __init__(self, path: Path, *, labels: str | None, num_classes: int | None):
    self._path, self._file = path, None
    try:
      members = zip_files.members(self._zip())
    except ValueError as error:
      raise ValueError(f"Cannot read {path}: {error}. It must be a .zip of pictures.") from error
    root = _shared_folder(list(members))
    files = sorted(name.removeprefix(root) for name in members)
    table = lambda: json_files.parse(zip_files.read(self._zip(), members[root + LABELS_FILE]))
    found = _labelled(files, labels, table, str(path))
    infos = [members[root + name] for name in found["names"]]
    self._entries = [info.filename for info in infos]
    self._stamps = [f"{info.file_size} {info.CRC:08x}" for info in infos]
    super().__init__(
      "zip", found["names"], found["labels"], num_classes=num_classes, ignored=found["ignored"]
    )

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_file": None}

  def _zip(self) -> zipfile.ZipFile:
    if self._file is None:
      self._file = zip_files.opened(self._path)
    return self._file

  def open(self, i: int) -> io.BytesIO:
    """The file, read whole."""
    try:
      archive = self._zip()
      return io.BytesIO(zip_files.read(archive, archive.getinfo(self._entries[i])))
    except ValueError as error:
      raise ValueError(f"Cannot read {self.names[i]} in {self._path}: {error}.") from error

  def stamp(self, i: int) -> str:
    """Its size and CRC."""
    return self._stamps[i]


class Parquet(Originals):
  """Rows of Hugging Face's parquet files; a row group is read at a time."""

  def __init__(
    self,
    path: Path,
    files: list[Path],
    *,
    image_column: str,
    labels: str | None,
    num_classes: int | None,
  ):
    self._files, self._column = files, image_column
    self._groups: list[tuple[int, int]] = []  # (file, row group)
    self._starts, names, values, class_names = [], [], [], None
    for number, file in enumerate(files):
      try:
        table = parquet_files.Table(file)
        label = _label_column(labels, table.columns)
        table.check_images(image_column)
        for group, rows in enumerate(table.rows):
          self._groups.append((number, group))
          self._starts.append(len(names))
          names += [f"{file.relative_to(path)} row {len(names) + k}" for k in range(rows)]
          if label is not None:
            values += table.labels(label, group)
        class_names = class_names or (label and table.class_names(label))
      except KeyError as error:
        raise ValueError(f"{file}: {error.args[0]}. Choose --image_column, --labels.") from None
      except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {file}: {printable(str(error))[:500]}") from error
    super().__init__(
      "parquet", names, values or None, num_classes=num_classes, class_names=class_names
    )
    self._stamps = [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    self._rows: parquet_files.Rows | None = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_rows": None}

  def open(self, i: int) -> io.BytesIO:
    """The bytes of a row."""
    group = bisect.bisect_right(self._starts, i) - 1
    place = (*self._groups[group], i - self._starts[group])
    try:
      if self._rows is None or not self._rows.skip_to(place):
        self._rows = parquet_files.Rows(self._files, self._column, place)
      value = self._rows.take()
    except (OSError, ValueError) as error:
      self._rows = None
      raise ValueError(f"Cannot read {self.names[i]}: {printable(str(error))[:500]}") from error
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
      raise ValueError(
        f"{self.names[i]}: column {self._column!r} holds no bytes but {type(value).__name__}. It "
        "must be Hugging Face's image column, {bytes, path}, with the bytes in it."
      )
    return io.BytesIO(data)

  def stamp(self, i: int) -> str:
    """That of its file."""
    return self._stamps[self._groups[bisect.bisect_right(self._starts, i) - 1][0]]


class Arrays(Originals):
  """Decoded images of one of `sources`, opened again in each process."""

  def __init__(
    self, kind: str, make: Callable[[], sources.Source], labels: str | None, **classes: Any
  ):
    if labels not in (None, "none"):
      raise ValueError(f"labels={labels!r}: of {kind} its own are taken, or 'none'.")
    self._make, self._source, self._read = make, None, (-1, {})
    source = self._opened()
    self.labelled = labels is None and source.num_classes > 0
    values = self._all_labels(source) if self.labelled else None
    super().__init__(kind, [f"{kind} {i}" for i in range(len(source))], values, **classes)

  def _all_labels(self, source: sources.Source) -> Sequence[int] | None:
    return source.take(np.arange(len(source)))["label"].tolist()

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_source": None, "_read": (-1, {})}

  def _opened(self) -> Any:
    if self._source is None:
      self._source = self._make()
    return self._source

  def element(self, i: int) -> dict[str, Any]:
    """Element i of the source."""
    if self._read[0] != i:
      self._read = (i, self._opened()[i])
    return self._read[1]

  def picture(self, i: int, convert: Sequence[str]) -> tuple[Image.Image, tuple[str, ...]]:
    """Image i; there is nothing to convert."""
    image = np.asarray(self.element(i)["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
      raise ValueError(
        f"{self.names[i]} is {image.dtype} {list(image.shape)}: it must be uint8 [h, w, c] with 1 "
        "or 3 channels."
      )
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), ()


class Npz(Arrays):
  """The arrays of an .npz, which are held in memory by each process."""

  def __init__(self, path: Path, *, split: str, labels: str | None, num_classes: int | None):
    make = functools.partial(sources.npz, path, split=split)
    super().__init__("npz", make, labels, num_classes=num_classes)
    self._stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns}"

  def stamp(self, i: int) -> str:
    """That of the file."""
    return self._stamp


class Tfds(Arrays):
  """A tfds data set, of images of any size; prepared by tfds first, if TensorFlow is there."""

  def __init__(self, name: str, split: str, *, labels: str | None, num_classes: int | None):
    super().__init__("tfds", functools.partial(sources.tfds_of_any_size, name, split=split), labels)
    known = self._opened()
    if num_classes not in (None, known.num_classes):
      raise ValueError(f"num_classes={num_classes}, but tfds says {known.num_classes}.")
    if self.labelled:
      self.class_names = known.class_names or [str(i) for i in range(known.num_classes)]

  def _all_labels(self, source: sources.Source) -> None:
    """None: without TensorFlow a label cannot be read without its image, so `label` reads both."""

  def label(self, i: int) -> int:
    """The label of image i."""
    return int(self.element(i)["label"])


EMPTY = "add some, or remove what holds none."


def _labelled(files: list[str], labels: str | None, read: Any, where: str) -> dict[str, Any]:
  """Which of these files are pictures, their labels and whether those are their folders.

  Args:
    files: relative, with slashes, sorted.
    labels: as in `find`.
    read: gives what is in LABELS_FILE, where it is one of the files.
    where: for the errors.
  """
  visible = [f for f in files if not any(p.startswith((".", "__MACOSX")) for p in f.split("/"))]
  names = [f for f in visible if f.lower().endswith(SUFFIXES)]
  ignored = len(visible) - len(names) - (LABELS_FILE in visible)
  found = {"names": names, "labels": None, "by_folder": False, "ignored": ignored}
  if labels == "none":
    return found
  if labels is not None:
    path = Path(labels).expanduser()
    if not path.is_file():
      raise ValueError(f"labels={labels!r} is no JSON file. Give its path, or 'none'.")
    return found | {"labels": _from_json(lambda: json_files.read(path), names, str(path))}
  if LABELS_FILE in visible:
    return found | {"labels": _from_json(read, names, f"{where}/{LABELS_FILE}")}
  depths = {name.count("/") for name in names}
  if depths == {1}:
    return found | {"labels": [name.split("/")[0] for name in names], "by_folder": True}
  if len(depths) > 1 or depths > {0}:
    raise ValueError(
      f"{where} has pictures at several levels, or deeper than a subfolder. Subfolders of one "
      "level are classes; for anything else give --labels: a JSON file {name: class}, or none."
    )
  return found


def _from_json(read: Callable[[], Any], names: list[str], where: str) -> list[Any] | None:
  """The label of each name: of EDM's {"labels": [[name, class], ...]}, or of {name: class}."""
  try:
    content = read()
    if not isinstance(content, dict):
      raise ValueError(f"it is {shown(content)}")
    pairs = content.get("labels", content)
    if pairs is None:
      return None
    table = dict(pairs)
    if len(table) < len(pairs):
      raise ValueError("it has a picture twice")
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(
      f"{where}: {printable(str(error))[:500]}. It must be JSON: {{name: class}}, or "
      "{'labels': [[name, class], ...]}."
    ) from error
  table = {str(PurePosixPath(str(name).replace("\\", "/"))): label for name, label in table.items()}
  missing = [name for name in names if name not in table]
  if missing:
    raise ValueError(
      f"{where} has no label for {len(missing)} of {len(names)} pictures, such as "
      f"{printable(missing[0])}. Add them, or remove the pictures."
    )
  return [table[name] for name in names]


def _classes(
  names: Sequence[str],
  labels: Sequence[Any] | None,
  num_classes: int | None,
  class_names: Sequence[str] | None,
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
        f"The label of {name} is {shown(label)}: labels must be whole numbers from 0 up"
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


def _shared_folder(names: list[str]) -> str:
  """The folder, with its slash, that all visible names are in; "" if there is none."""
  folders = {n.split("/")[0] for n in names if not n.startswith(("__MACOSX", "."))}
  nested = all("/" in n for n in names if not n.startswith(("__MACOSX", ".")))
  return f"{folders.pop()}/" if len(folders) == 1 and nested else ""


def _of_split(files: list[Path], split: str) -> list[Path]:
  """Those parquet files that a split names, by Hugging Face's rules: train-00000-of-00004."""
  belongs = lambda file, split: (
    file.stem == split
    or file.stem.startswith((f"{split}-", f"{split}_"))
    or file.parent.name == split
  )
  if chosen := [file for file in files if belongs(file, split)]:
    return chosen
  others = ("train", "test", "validation", "valid", "val")
  if any(belongs(file, other) for file in files for other in others):
    raise ValueError(
      f"No parquet file of split {split!r} among {len(files)}, such as {files[0].name}. Give "
      "another --split."
    )
  return files


def _label_column(labels: str | None, columns: list[str]) -> str | None:
  if labels in (None, "none"):
    return "label" if labels is None and "label" in columns else None
  if labels not in columns:
    raise KeyError(f"it has no column {labels!r}: {printable(', '.join(columns[:20]))}")
  return labels
