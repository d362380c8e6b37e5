"""The pages of a parquet column, by their headers: how much each says that it unpacks to.

The footer of a file has sums of these numbers, but a file may say one thing there and another in
its pages; memory is taken by what the page says. A header is a struct of Thrift's compact protocol
(parquet-format, PageHeader): field 1 is the kind of the page, 2 its bytes when unpacked, 3 its
bytes in the file.
"""

import io
from pathlib import Path
from typing import Any

from cmjax.base import limits
from cmjax.base.printable import shown

MAX_HEADER = 2**16  # bytes; statistics of a page are in it
MAX_PAGES, MAX_FIELDS, MAX_DEPTH = 100_000, 200, 8
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


def check(path: Path, metadata: Any, column: str) -> None:
  """Raises if a page of a column would unpack to more than the limit.

  Args:
    path: of the file.
    metadata: pyarrow's, of the footer.
    column: the path of a leaf in the schema.

  Raises:
    ValueError: in one line; also for headers that cannot be read.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    for group in range(metadata.num_row_groups):
      row_group = metadata.row_group(group)
      for k in range(row_group.num_columns):
        chunk = row_group.column(k)
        if chunk.path_in_schema == column:
          start, count = _place(chunk), chunk.total_compressed_size
          if start < 0 or count < 0 or start + count > size:
            raise ValueError(f"column {shown(column)} is said to lie beyond the end of the file")
          _check_pages(file, start, start + count)


def _place(chunk: Any) -> int:
  starts = [chunk.data_page_offset]
  if chunk.has_dictionary_page and chunk.dictionary_page_offset:
    starts.append(chunk.dictionary_page_offset)
  return min(starts)


def _check_pages(file: Any, position: int, end: int) -> None:
  pages = 0
  while position < end:
    file.seek(position)
    header = io.BytesIO(file.read(min(MAX_HEADER, end - position)))
    fields = _struct(header, 0)
    unpacked, packed = fields.get(2), fields.get(3)
    if type(unpacked) is not int or type(packed) is not int or min(unpacked, packed) < 0:
      raise ValueError("the header of a page does not say how long it is")
    limits.check("parquet_page_bytes", unpacked, f"a page of {packed} bytes unpacks to {unpacked}")
    if unpacked > limits.FREE:
      limits.check(
        "zip_ratio", unpacked // max(1, packed), f"a page of {packed} bytes unpacks to {unpacked}"
      )
    position, pages = position + header.tell() + packed, pages + 1
    if pages > MAX_PAGES:
      raise ValueError(f"a column has more than {MAX_PAGES} pages in a row group")


def _struct(stream: io.BytesIO, depth: int) -> dict[int, Any]:
  """The fields of a struct by their numbers; of what is nested the values are left out."""
  if depth > MAX_DEPTH:
    raise ValueError("the header of a page is nested too deep")
  fields: dict[int, Any] = {}
  number = 0
  for _ in range(MAX_FIELDS):
    head = _byte(stream)
    if head == 0:
      return fields
    number = number + (head >> 4) if head >> 4 else _zigzag(_varint(stream))
    fields[number] = _value(stream, head & 15, depth)
  raise ValueError(f"the header of a page has more than {MAX_FIELDS} fields")


def _value(stream: io.BytesIO, kind: int, depth: int) -> Any:
  if kind in (_TRUE, _FALSE):
    return kind == _TRUE
  if kind in _INTEGERS:
    return _zigzag(_varint(stream))
  if kind == _STRUCT:
    _struct(stream, depth + 1)
  elif kind in (_BYTE, _DOUBLE, _BINARY):
    count = {_BYTE: 1, _DOUBLE: 8}.get(kind) or _varint(stream)
    if count > MAX_HEADER or len(stream.read(count)) < count:
      raise ValueError("the header of a page is cut off")
  elif kind in (_LIST, _SET):
    _items(stream, depth)
  else:
    raise ValueError(f"the header of a page has a field of kind {kind}")
  return None


def _items(stream: io.BytesIO, depth: int) -> None:
  head = _byte(stream)
  count = head >> 4 if head >> 4 < 15 else _varint(stream)
  if count > MAX_FIELDS:
    raise ValueError("the header of a page has too long a list")
  for _ in range(count):
    if head & 15 in (_TRUE, _FALSE):
      _byte(stream)
    else:
      _value(stream, head & 15, depth + 1)


def _byte(stream: io.BytesIO) -> int:
  data = stream.read(1)
  if not data:
    raise ValueError("the header of a page is cut off")
  return data[0]


def _varint(stream: io.BytesIO) -> int:
  value = 0
  for shift in range(0, 70, 7):
    byte = _byte(stream)
    value |= (byte & 127) << shift
    if byte < 128:
      return value
  raise ValueError("the header of a page has a number without an end")


def _zigzag(value: int) -> int:
  return (value >> 1) ^ -(value & 1)
