"""What the bytes of a picture say before anything is decoded: its format, size and orientation.

Pillow gets a file only after this. By itself it would take a file for what its first bytes claim,
PostScript among them, for which it starts a program; and it allocates what a header asks for.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Pillow's names of the formats that are read, and how their files begin.
MAGIC = {
  "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
  "JPEG": re.compile(rb"\xff\xd8\xff"),
  "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
  "GIF": re.compile(rb"GIF8[79]a"),
  "BMP": re.compile(rb"BM....\0\0\0\0", re.DOTALL),
  "TIFF": re.compile(rb"II\*\0|MM\0\*"),
}
# Others, by which a file that is refused is named.
OTHER_MAGIC = {
  "PostScript": re.compile(rb"%!|\xc5\xd0\xd3\xc6"),
  "PDF": re.compile(rb"%PDF"),
  "AVIF or HEIC": re.compile(rb"....ftyp(avi[fs]|he[ivm]|mif1|msf1)", re.DOTALL),
  "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
  "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
  "Photoshop": re.compile(rb"8BPS"),
  "BigTIFF": re.compile(rb"II\+\0|MM\0\+"),
  "OpenEXR": re.compile(rb"\x76\x2f\x31\x01"),
  "QOI": re.compile(rb"qoif"),
  "a web page, XML or SVG": re.compile(rb"\s*<"),
}
NO_PICTURES = ("PostScript", "PDF", "a web page, XML or SVG")  # by their first bytes alone
HEAD_BYTES = 32  # enough for every pattern above
READ = "PNG, JPEG, WebP, GIF, BMP or TIFF"

MAX_SCANS = (
  100  # of a progressive JPEG; encoders write about 10, and each is a pass over all pixels
)
MAX_JUNK = 4096  # bytes between two segments of a JPEG
# Data that an EXIF or TIFF directory may point to, relative to its file: entries do not overlap.
MAX_DIRECTORY_RATIO = 16
_ENTRY_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8), start=1))
_ORIENTATION = 0x112
_INNER_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # of EXIF, GPS and interoperability
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Header(NamedTuple):
  """What is known before decoding.

  Attributes:
    format: one of `MAGIC`.
    orientation: EXIF's, 1 (as stored) to 8.
    size: width and height, where Pillow would allocate them before it tells.
  """

  format: str
  orientation: int = 1
  size: tuple[int, int] | None = None


def read(data: bytes, *, whole: bool) -> Header:
  """The header of a picture.

  Args:
    data: its bytes, or the first of them.
    whole: look at all of it: the checksums of a PNG, the scans of a JPEG.

  Raises:
    EOFError: the data ends too early; with more of the file it may go on.
    ValueError: it is no picture of a format that is read, or is damaged.
  """
  name = sniff(data)
  if name not in MAGIC:
    known = f", as {name} does" if name else ""
    raise ValueError(f"it is no {READ}: it begins with {data[:8]!r}{known}")
  try:
    return _READERS[name](data, whole)
  except (struct.error, IndexError):
    raise EOFError("it ends within its header") from None


def sniff(data: bytes) -> str | None:
  """The format that the first `HEAD_BYTES` of a file are of: a key of one of the tables above."""
  for name, pattern in (MAGIC | OTHER_MAGIC).items():
    if pattern.match(data):
      return name
  return None


def _png(data: bytes, whole: bool) -> Header:
  """Walks the chunks; Pillow looks at no checksum of the pixels, so a changed bit would pass."""
  place, orientation = 8, 1
  view = memoryview(data)
  while True:
    length, name = struct.unpack_from(">I4s", data, place)
    if name == b"IDAT" and not whole:
      return Header("PNG", orientation)
    end = place + 8 + length
    (checksum,) = struct.unpack_from(">I", data, end)
    if name[:1].isupper() and zlib.crc32(view[place + 4 : end]) != checksum:
      raise ValueError(f"the checksum of its chunk {name.decode('latin-1')!r} is wrong")
    if name == b"eXIf":
      orientation = _directory(data[place + 8 : end])
    if name == b"IEND":
      return Header("PNG", orientation)
    place = end + 4


def _jpeg(data: bytes, whole: bool) -> Header:
  """Walks the segments, and through all scans if asked."""
  place, scans, exif = 2, 0, b""
  while True:
    if scans and data.find(b"\xff", place) < 0:  # no end: whether rows are missing, Pillow knows
      return Header("JPEG", _directory(exif))
    place = _marker(data, place)
    kind = data[place + 1]
    place += 2
    if kind == 0xD9 or (kind == 0xDA and not whole):  # the end, or the first scan
      return Header("JPEG", _directory(exif))
    if kind in (0x01, *range(0xD0, 0xD9)):  # these stand alone
      continue
    (length,) = struct.unpack_from(">H", data, place)
    content = data[place + 2 : place + length]
    if len(content) + 2 < length:
      raise EOFError("it is truncated")
    place += max(length, 2)
    if kind == 0xE1 and content.startswith(b"Exif\0\0"):
      exif += content[6:]
    if kind == 0xE2 and content.startswith(b"MPF\0"):
      _directory(content[4:])
    if kind == 0xDA:
      scans += 1
      if scans > MAX_SCANS:
        raise ValueError(f"it has more than {MAX_SCANS} scans, each a pass over all pixels")
      following = _NEXT_MARKER.search(data, place)
      place = following.start() if following else len(data)


def _marker(data: bytes, place: int) -> int:
  """Where the next marker is: fill bytes, and a little of what is none, are passed over."""
  found = data.find(b"\xff", place)
  if found < 0:
    raise EOFError("it is truncated: a segment is missing")
  if found - place > MAX_JUNK:
    raise ValueError(f"it has {found - place} bytes between two segments")
  while data[found + 1] == 0xFF:
    found += 1
  return found


def _webp(data: bytes, whole: bool) -> Header:
  """The canvas, which Pillow allocates on opening, and the chunk EXIF, which comes last."""
  kind = data[12:16]
  if kind == b"VP8X":
    flags, *sides = struct.unpack_from("<B3x3s3s", data, 20)
    width, height = (int.from_bytes(side, "little") + 1 for side in sides)
  elif kind == b"VP8L":
    (bits,) = struct.unpack_from("<I", data, 21)
    flags, width, height = 0, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  else:
    flags, (width, height) = 0, (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
  orientation, place = 1, 12
  while flags & 0x08 and place + 8 <= len(data):  # it says that there is EXIF
    name, length = struct.unpack_from("<4sI", data, place)
    place += 8
    if name == b"EXIF":
      if place + length > len(data):
        raise EOFError("it is truncated")
      orientation = _directory(data[place : place + length].removeprefix(b"Exif\0\0"))
      break
    place += length + length % 2
    if place + 8 > len(data) and not whole:
      raise EOFError("the chunk EXIF is behind what was read")
  return Header("WEBP", orientation, (width, height))


def _tiff(data: bytes, whole: bool) -> Header:
  order = "<" if data[:2] == b"II" else ">"
  (start,) = struct.unpack_from(f"{order}I", data, 4)
  (count,) = struct.unpack_from(f"{order}H", data, start)
  if start + 2 + 12 * count > len(data):
    raise EOFError("its directory is behind what was read")
  return Header("TIFF", _directory(data))


def _directory(data: bytes) -> int:
  """The orientation that a TIFF directory says, which EXIF is, too; 1 where it says none.

  Raises:
    ValueError: entries point to the same bytes again and again, for readers to copy them.
  """
  order = {b"II": "<", b"MM": ">"}.get(data[:2])
  if order is None or len(data) < 8:
    return 1
  (start,) = struct.unpack_from(f"{order}I", data, 4)
  orientation, pointed_to = 1, 0
  for tag, kind, number, value in _entries(data, start, order):
    pointed_to += min(_ENTRY_BYTES.get(kind, 0) * number, len(data))
    if tag == _ORIENTATION and kind in (3, 4):
      (orientation,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), value)
    if tag in _INNER_DIRECTORIES:
      (inner,) = struct.unpack(f"{order}I", value)
      for _, kind, number, _ in _entries(data, inner, order):
        pointed_to += min(_ENTRY_BYTES.get(kind, 0) * number, len(data))
  if pointed_to > MAX_DIRECTORY_RATIO * len(data) + 2**16:
    raise ValueError(f"a directory in it points to {pointed_to:,} bytes of {len(data):,}")
  return orientation if orientation in range(1, 9) else 1


def _entries(data: bytes, start: int, order: str) -> Iterator[tuple[int, int, int, bytes]]:
  """(tag, type, count, value) of each entry of the directory at `start`, as far as it goes."""
  if start + 2 > len(data):
    return
  (count,) = struct.unpack_from(f"{order}H", data, start)
  entries = data[start + 2 : start + 2 + 12 * count]
  yield from struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12])


_READERS = {
  "PNG": _png,
  "JPEG": _jpeg,
  "WEBP": _webp,
  "GIF": lambda data, whole: Header("GIF"),
  "BMP": lambda data, whole: Header("BMP"),
  "TIFF": _tiff,
}
