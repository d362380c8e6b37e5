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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmjax.base import json_files, limits, npz, paths, safe_names, zip_files
from cmjax.base.printable import printable
from cmjax.data import image_files, image_headers, image_lists, sources, summary
from cmjax.data.prepare import parquet_files


class Originals:
  """Pictures by index.

  Attributes:
    kind: of the source, in a word.
    names: of each, as errors and reports give them.
    labels: int32 [n]; None without classes, or where only `label` knows them.
    class_names: as many as there are classes.
    passed_over: reason -> number of files beside the pictures.
    rules: by which pictures are opened; `picture` makes the conversions of its recipe instead.
    moments: whether they are no pictures but EDM2's latents, which `array` reads.
  """

  rules = image_files.DEFAULT
  moments = False

  def __init__(
    self,
    kind: str,
    names: Sequence[str],
    labels: Sequence[Any] | None,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    passed_over: Mapping[str, int] | None = None,
  ):
    if not len(names):
      raise ValueError(f"There are no pictures in this {kind}. Check the path.")
    self.kind, self.passed_over = kind, dict(passed_over or {})
    self.names = [printable(name) for name in names]
    self.labels, self.class_names = image_lists.number_classes(
      names, labels, num_classes, class_names
    )

  def __len__(self) -> int:
    return len(self.names)

  def line(self, source: str) -> str:
    """What there is, for people."""
    counts = None if self.labels is None else sources.count_labels(self.labels)
    parts = [
      f"{source} ({self.kind}): {len(self):,} pictures",
      summary.classes(self.class_names, len(self.class_names), counts),
    ]
    if self.passed_over:
      parts.append(f"passed over: {image_lists.told(self.passed_over)}")
    return "; ".join(parts) + "."

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

  def array(self, i: int) -> np.ndarray:
    """File i of EDM2's latents: mean and then std of each channel, float32 [h, w, 2 c].

    Raises:
      image_files.Damaged: it cannot be read, or has no such numbers.
    """
    file = self.open(i)
    try:
      if isinstance(file, Path):
        limits.check("record_bytes", file.stat().st_size, "it has too many bytes")
      found = npz.array(file.read_bytes() if isinstance(file, Path) else file.getvalue())
      channels = found.shape[0] if found.ndim == 3 else 0
      if not channels or channels % 2 or found.dtype.kind != "f":
        raise ValueError(f"it is {found.dtype} {list(found.shape)}, not floats [2 c, h, w]")
      if not np.isfinite(found).all() or (found[channels // 2 :] < 0).any():
        raise ValueError("it has numbers that are not finite, or a std below 0")
    except (ValueError, OSError) as error:
      reason = printable(str(error))[:500]
      raise image_files.Damaged(f"Cannot read {self.names[i]}: {reason}.") from error
    return np.ascontiguousarray(found.astype(np.float32).transpose(1, 2, 0))

  def picture(
    self, i: int, convert: Sequence[str], background: tuple[int, int, int] = image_files.WHITE
  ) -> tuple[Image.Image, tuple[str, ...]]:
    """Picture i in mode L or RGB, and which conversions that took."""
    rules = self.rules._replace(convert=tuple(convert), background=background)
    return image_files.open_picture(self.open(i), self.names[i], rules)


def find(
  source: str | os.PathLike[str],
  *,
  split: str = "train",
  labels: str | None = None,
  num_classes: int | None = None,
  image_column: str = "image",
  moments: bool = False,
) -> Originals:
  """The pictures of a source, by what it is.

  Args:
    source: a path, or a tfds name.
    split: of an .npz, a tfds data set or parquet files.
    labels: None: as the source has them; "none": no classes; a JSON file, or a column of parquet.
    num_classes: where it is more than the labels show; all must be below it.
    image_column: of parquet files.
    moments: whether the files of a folder or .zip are EDM2's latents, not pictures.

  Raises:
    ValueError: there is no such source, no picture in it, or a picture without a label.
  """
  if not re.fullmatch(r"[\w.-]+", split) or safe_names.flat(split) != split:
    raise ValueError(f"split={split!r} names a folder: use letters, digits, '_', '-' and '.'.")
  options: dict[str, Any] = dict(labels=labels, num_classes=num_classes)
  text = str(source)
  if text.startswith("tfds:"):
    return Tfds(text.removeprefix("tfds:"), split, **options)
  path = paths.local(text)
  if moments:
    if not path.is_dir() and path.suffix.lower() != ".zip":
      raise ValueError(f"{path} is no folder and no .zip of EDM2's latents.")
    reader = Folder if path.is_dir() else Zip
    found = reader(path, suffixes=image_lists.MOMENTS, **options)
    found.kind, found.moments = f"{found.kind} of moments", True
    return found
  if path.is_dir():
    tables = sorted(path.rglob("*.parquet"))
    if tables:
      pictures = image_lists.num_pictures(path)
      if pictures:
        raise ValueError(
          f"{path} has {pictures} pictures and {len(tables)} .parquet files. Give a folder of one "
          "kind."
        )
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

  def __init__(
    self,
    path: Path,
    *,
    labels: str | None,
    num_classes: int | None,
    suffixes: Sequence[str] = image_lists.SUFFIXES,
  ):
    self._path = path
    listing = image_lists.of_folder(path, labels, suffixes)
    self._files = listing.names
    super().__init__(
      "folder",
      listing.names,
      listing.labels,
      num_classes=num_classes,
      passed_over=listing.passed_over,
    )

  def open(self, i: int) -> Path:
    """The file."""
    return self._path / self._files[i]

  def stamp(self, i: int) -> str:
    """Its size, and when it was written."""
    path = self._path / self._files[i]
    stat = path.stat() if path.exists() else path.lstat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


class Zip(Originals):
  """The same in a .zip, EDM's among them; a folder that all files share does not count."""

  def __init__(
    self,
    path: Path,
    *,
    labels: str | None,
    num_classes: int | None,
    suffixes: Sequence[str] = image_lists.SUFFIXES,
  ):
    self._path, self._file = path, None
    try:
      members = zip_files.members(self._zip(), windows=True)
    except ValueError as error:
      raise ValueError(f"Cannot read {path}: {error}. It must be a .zip of pictures.") from error
    root = _shared_folder(list(members))
    folders = [f"{name}/" for name in zip_files.folders(self._zip(), windows=True)]
    files = image_lists.Files(
      [name.removeprefix(root) for name in members],
      [name.removeprefix(root).split("/")[0] for name in folders if name != root],
    )
    listing = image_lists.find(
      files,
      str(path),
      labels=labels,
      head=lambda name: self._read(members[root + name], image_headers.HEAD_BYTES),
      table=lambda: json_files.parse(self._read(members[root + image_lists.LABELS_FILE])),
      suffixes=suffixes,
    )
    infos = [members[root + name] for name in listing.names]
    self._entries = [info.filename for info in infos]
    self._stamps = [f"{info.file_size} {info.CRC:08x}" for info in infos]
    super().__init__(
      "zip", listing.names, listing.labels, num_classes=num_classes, passed_over=listing.passed_over
    )

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_file": None}

  def _zip(self) -> zipfile.ZipFile:
    if self._file is None:
      self._file = zip_files.opened(self._path)
    return self._file

  def open(self, i: int) -> io.BytesIO:
    """The file, read whole."""
    return io.BytesIO(self._read(self._zip().getinfo(self._entries[i])))

  def _read(self, info: zipfile.ZipInfo, size: int | None = None) -> bytes:
    """The bytes of a file, or the first of them."""
    try:
      return zip_files.read(self._zip(), info, size)
    except ValueError as error:
      name, reason = printable(info.filename), printable(str(error))[:500]
      raise image_files.Damaged(f"Cannot read {name} in {self._path}: {reason}.") from error

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

  def picture(
    self, i: int, convert: Sequence[str], background: tuple[int, int, int] = image_files.WHITE
  ) -> tuple[Image.Image, tuple[str, ...]]:
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
