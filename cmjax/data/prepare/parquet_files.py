"""Hugging Face's parquet files of pictures, row by row, with bounds on what a file may ask for.

A parquet file is packed twice. A value that repeats is kept once, with how often it occurs, and
pages are compressed on top: 12 kB can hold a hundred million rows, or terabytes. So rows are
counted against the bytes of the file, each page's size is read in its header, and pictures are
unpacked one at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmjax.base import json_files, limits
from cmjax.base.printable import printable, shown
from cmjax.data.prepare import parquet_pages

MAX_LABEL = 1000  # characters of a label that is text
AT_ONCE = 10_000  # labels


class Table:
  """One parquet file, by row groups.

  Attributes:
    columns: their names.
    rows: of each row group.

  Raises:
    ValueError, OSError: it is damaged, or says that it has more rows than its bytes can hold.
  """

  def __init__(self, path: Path):
    self._path = path
    with _told():
      self._open(path)

  def _open(self, path: Path) -> None:
    self._file = _pyarrow().ParquetFile(path)
    self._schema, metadata = self._file.schema_arrow, self._file.metadata
    self.columns: list[str] = self._schema.names
    self.rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    size = path.stat().st_size
    if min(self.rows, default=0) < 0:
      raise ValueError("a row group has fewer rows than none")
    per_kb = -(-sum(self.rows) * 1024 // max(1, size))
    limits.check(
      "parquet_rows_per_kb", per_kb, f"it says that it has {sum(self.rows)} rows in {size} bytes"
    )

  def check_images(self, column: str) -> None:
    """Raises if a column is not there (KeyError), or holds no bytes (ValueError)."""
    types = _types()
    if column not in self.columns:
      there = printable(", ".join(self.columns[:20]))
      raise KeyError(f"it has no column {column!r}: {there}")
    kind = self._schema.field(column).type
    if types.is_struct(kind):
      inside = [i for i in range(kind.num_fields) if kind.field(i).name == "bytes"]
      kind = kind.field(inside[0]).type if inside else kind
    if not _is_bytes(kind):
      raise ValueError(
        f"column {column!r} holds no bytes but {str(kind)[:80]}. It must be Hugging Face's image "
        "column, {bytes, path}, with the bytes in it."
      )
    parquet_pages.check(self._path, _leaf(self._schema, column))

  def labels(self, column: str, group: int) -> list[Any]:
    """The labels of a row group: whole numbers, or text."""
    with _told():
      return self._labels(column, group)

  def _labels(self, column: str, group: int) -> list[Any]:
    types, kind = _types(), self._schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if not is_text and not types.is_integer(kind):
      raise ValueError(f"column {column!r} holds {str(kind)[:80]}, not whole numbers or text")
    if group == 0:
      parquet_pages.check(self._path, column)
    # Text that repeats is kept as it is in the file, once.
    options: dict[str, Any] = {"read_dictionary": [column]} if is_text else {}
    file, found = _pyarrow().ParquetFile(self._path, **options), []
    for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=[column]):
      values = batch.column(0)
      words = values.dictionary if types.is_dictionary(values.type) else ()
      if is_text and any(len(word.as_py() or "") > MAX_LABEL for word in words):
        raise ValueError(f"column {column!r} has a label of more than {MAX_LABEL} characters")
      found += values.to_pylist()
    if len(found) != self.rows[group]:
      raise ValueError(f"column {column!r} has {len(found)} labels for {self.rows[group]} rows")
    return found

  def class_names(self, column: str) -> list[str] | None:
    """The names that Hugging Face's `datasets` wrote of a ClassLabel; None where it wrote none."""
    data = (self._schema.metadata or {}).get(b"huggingface", b"{}")
    try:
      names = json_files.parse(data)["info"]["features"][column]["names"]
    except (KeyError, TypeError):
      return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise ValueError(f"its Hugging Face metadata have no names of classes, but {shown(names)}")
    limits.check("classes", len(names), "its metadata name too many classes")
    return names


class Rows:
  """Pictures from a place (file, row group, row) on, one after the other."""

  def __init__(self, files: Sequence[Path], column: str, start: tuple[int, int, int]):
    file, group, _ = start
    self._place = (file, group, 0)
    with _told():
      table = _pyarrow().ParquetFile(files[file])
      self._values = _values(table, _leaf(table.schema_arrow, column), group)
    self.skip_to(start)

  def skip_to(self, place: tuple[int, int, int]) -> bool:
    """Goes on to a later row of the same row group; False where the place is another."""
    if place[:2] != self._place[:2] or place[2] < self._place[2]:
      return False
    while self._place != place:
      self.take()
    return True

  def take(self) -> Any:
    """The value of this row, and on to the next."""
    file, group, row = self._place
    self._place = (file, group, row + 1)
    try:
      with _told():
        return next(self._values)
    except StopIteration:
      raise ValueError("the row group has fewer rows than it says") from None


def _values(table: Any, leaf: str, group: int) -> Iterator[Any]:
  # One row at a time: each of a hundred rows may be the same picture of a gigabyte.
  for batch in table.iter_batches(1, row_groups=[group], columns=[leaf]):
    yield from batch.column(0).to_pylist()


def _leaf(schema: Any, column: str) -> str:
  """The path of the column's bytes in the file: without Hugging Face's `path` beside them."""
  kind = schema.field(column).type
  return f"{column}.bytes" if _types().is_struct(kind) else column


def _is_bytes(kind: Any) -> bool:
  types = _types()
  return types.is_binary(kind) or types.is_large_binary(kind)


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """What pyarrow raises of a file, and there are many kinds, as a ValueError."""
  try:
    yield
  except (ValueError, OSError, KeyError, StopIteration):
    raise
  except Exception as error:
    raise ValueError(printable(" ".join(str(error).split()))) from error


def _types() -> Any:
  import pyarrow.types

  return pyarrow.types


def _pyarrow() -> Any:
  try:
    import pyarrow.parquet as pq  # here, as only these sources need it
  except ImportError as error:
    raise ValueError(
      "Parquet files need pyarrow: pip install 'cmjax[prepare]', or pip install pyarrow."
    ) from error
  return pq
