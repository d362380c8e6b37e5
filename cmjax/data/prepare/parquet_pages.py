"""The pages of a parquet column, by their headers: how much each says that it unpacks to.

The footer of a file has sums of these numbers, but a file may say one thing there and another in
its pages; memory is taken by what the page says. A header is a struct of Thrift's compact protocol
(parquet-format, PageHeader): field 1 is the kind of the page, 2 its bytes when unpacked, 3 its
bytes in the file.

Where the pages begin is read here as well, in the footer (FileMetaData): pyarrow ends the process
where a chunk of a column is asked for whose statistics do not fit its schema.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmjax.base import limits
from cmjax.base.printable import shown

MAX_HEADER = 2**16  # bytes; statistics of a page are in it
MAX_PAGES, MAX_FIELDS, MAX_DEPTH = 100_000, 200, 12
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


# The fields of the footer that say where chunks lie: row groups, columns, the metadata of a chunk,
# and of these its path, its bytes in the file, its first page, and that of its dictionary.
_PATH, _BYTES, _FIRST, _DICTIONARY = 3, 7, 9, 11
_GROUPS, _COLUMNS, _CHUNK = 4, 1, 3
_FOOTER: Mapping[int, Any] = {
  _GROUPS: {_COLUMNS: {_CHUNK: dict.fromkeys((_PATH, _BYTES, _FIRST, _DICTIONARY), {})}}
}
_END = b"PAR1"


class _Reading(NamedTuple):
  """What is read of a struct.

  Attributes:
    what: it is, for errors.
    wanted: {field: the fields that are wanted in what it holds} of what is nested; numbers are
      kept anyway.
    most: items of a list, and bytes of a text.
  """

  what: str
  wanted: Mapping[int, Any]
  most: int

  def at(self, field: int) -> "_Reading":
    """What is read of what a field holds."""
    return self._replace(wanted=self.wanted.get(field, {}))


_HEADER = _Reading("the header of a page", {}, MAX_FIELDS)


def check(path: Path, column: str) -> None:
  """Raises if a page of a column would unpack to more than the limit.

  Args:
    path: of the file.
    column: the path of a leaf in the schema.

  Raises:
    ValueError: in one line; also for headers that cannot be read.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    for group in _list(_footer(file, size), _GROUPS, dict):
      for one in _list(group, _COLUMNS, dict):
        chunk = one.get(_CHUNK, {})
        if not isinstance(chunk, dict):
          raise ValueError("its footer says of a column what it cannot")
        if b".".join(_list(chunk, _PATH, bytes)) == column.encode():
          start, count = _place(chunk), _number(chunk, _BYTES)
          if start < 0 or count < 0 or start + count > size:
            raise ValueError(f"column {shown(column)} is said to lie beyond the end of the file")
          _check_pages(file, start, start + count)


def _footer(file: Any, size: int) -> dict[int, Any]:
  file.seek(max(0, size - 8))
  end = file.read(8)
  count = int.from_bytes(end[:4], "little")
  if end[4:] != _END or count > size - 8:
    raise ValueError("its end is no footer of parquet")
  file.seek(size - 8 - count)
  return _struct(io.BytesIO(file.read(count)), 0, _Reading("its footer", _FOOTER, count))


def _list(fields: Mapping[int, Any], field: int, kind: type) -> list[Any]:
  found = fields.get(field, [])
  if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
    raise ValueError("its footer has another list than it must have")
  return found


def _number(fields: Mapping[int, Any], field: int) -> int:
  found = fields.get(field, -1)
  return found if type(found) is int else -1


def _place(chunk: Mapping[int, Any]) -> int:
  first, dictionary = _number(chunk, _FIRST), _number(chunk, _DICTIONARY)
  return min(first, dictionary) if dictionary > 0 else first


def _check_pages(file: Any, position: int, end: int) -> None:
  pages = 0
  while position < end:
    file.seek(position)
    header = io.BytesIO(file.read(min(MAX_HEADER, end - position)))
    fields = _struct(header, 0, _HEADER)
    unpacked, packed = fields.get(2), fields.get(3)
    if type(unpacked) is not int or type(packed) is not int or min(unpacked, packed) < 0:
      raise ValueError("the header of a page does not say how long it is")
    said = f"a page of {packed} bytes unpacks to {unpacked}"
    limits.check("parquet_page_bytes", unpacked, said)
    limits.check_ratio(packed, unpacked, said)
    position, pages = position + header.tell() + packed, pages + 1
    if pages > MAX_PAGES:
      raise ValueError(f"a column has more than {MAX_PAGES} pages in a row group")


def _struct(stream: io.BytesIO, depth: int, reading: _Reading) -> dict[int, Any]:
  """The fields of a struct by their numbers; of what is nested, the values that are wanted."""
  if depth > MAX_DEPTH:
    raise ValueError(f"{reading.what} is nested too deep")
  fields: dict[int, Any] = {}
  number = 0
  for _ in range(MAX_FIELDS):
    head = _byte(stream, reading)
    if head == 0:
      return fields
    step = head >> 4
    number = number + step if step else _zigzag(_varint(stream, reading))
    value = _value(stream, head & 15, depth, reading.at(number))
    if number in reading.wanted or isinstance(value, int):
      fields[number] = value
  raise ValueError(f"{reading.what} has more than {MAX_FIELDS} fields")


def _value(stream: io.BytesIO, kind: int, depth: int, reading: _Reading) -> Any:
  if kind in (_TRUE, _FALSE):
    return kind == _TRUE
  if kind in _INTEGERS:
    return _zigzag(_varint(stream, reading))
  if kind == _STRUCT:
    return _struct(stream, depth + 1, reading)
  if kind in (_BYTE, _DOUBLE, _BINARY):
    count = {_BYTE: 1, _DOUBLE: 8}.get(kind) or _varint(stream, reading)
    text = stream.read(count) if count <= max(MAX_HEADER, reading.most) else b""
    if len(text) < count:
      raise ValueError(f"{reading.what} is cut off")
    return text
  if kind in (_LIST, _SET):
    return _items(stream, depth, reading)
  raise ValueError(f"{reading.what} has a field of kind {kind}")


def _items(stream: io.BytesIO, depth: int, reading: _Reading) -> list[Any]:
  head = _byte(stream, reading)
  count = head >> 4 if head >> 4 < 15 else _varint(stream, reading)
  if count > reading.most:
    raise ValueError(f"{reading.what} has too long a list")
  if head & 15 in (_TRUE, _FALSE):
    return [_byte(stream, reading) for _ in range(count)]
  return [_value(stream, head & 15, depth + 1, reading) for _ in range(count)]


def _byte(stream: io.BytesIO, reading: _Reading) -> int:
  data = stream.read(1)
  if not data:
    raise ValueError(f"{reading.what} is cut off")
  return data[0]


def _varint(stream: io.BytesIO, reading: _Reading) -> int:
  value = 0
  for shift in range(0, 70, 7):
    byte = _byte(stream, reading)
    value |= (byte & 127) << shift
    if byte < 128:
      return value
  raise ValueError(f"{reading.what} has a number without an end")


def _zigzag(value: int) -> int:
  return (value >> 1) ^ -(value & 1)
