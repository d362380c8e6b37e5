"""The one gateway to pictures: what training, preparing and scoring open, they open here.

| of a picture | the rule |
|---|---|
| format | PNG, JPEG, WebP, GIF, BMP, TIFF, by the first bytes and not by the name; no other |
| size | at most `Rules.max_bytes` of a file and `Rules.max_pixels`, both before decoding |
| EXIF orientation | applied, and counted; XMP's is not read |
| colour profile, gamma | not applied: pixels are as they are stored |
| 8 bits of gray or RGB, black and white | taken as they are |
| palette, alpha, CMYK, 16 bits, several frames | refused, unless `Rules.convert` names them |
| anything else (floats, LAB, YCbCr outside of JPEG) | refused |
| damaged, truncated, no picture at all | `Damaged`: an error, or left out up to `max_bad` |
"""

import collections
import io
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile

from cmjax.data import image_headers

GRAY_MODES = ("1", "L", "LA", "La")
PLAIN_MODES = (*GRAY_MODES, "RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK")
# What is not 8 bits of gray or RGB, and what is done with it where that is asked for.
CONVERSIONS = {
  "palette": "its colours are looked up, which loses nothing",
  "alpha": "it is laid over white, or --background; opaque all over, it needs no asking",
  "cmyk": "by Pillow's formula, without a colour profile",
  "16-bit": "the upper 8 bits are kept",
  "animated": "the first frame is taken",
}
VERSION = 2  # of the rules above: a prepared set of others is another set
HEAD_BYTES = 2**15  # read of a file to see its header; more if that does not reach
# Pictures with alpha that are decoded at the door: that one is opaque cannot be seen otherwise.
ALPHA_PROBES = 64
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


WHITE = (255, 255, 255)


class Rules(NamedTuple):
  """What may be done with pictures, and how large they may be.

  Attributes:
    convert: which of `CONVERSIONS` are made.
    max_pixels: of one picture, up to 178,956,970, where Pillow stops; 2**26 is 8192 x 8192.
    max_bytes: of one file.
    background: that alpha is laid over, red, green and blue.
  """

  convert: tuple[str, ...] = ()
  max_pixels: int = 2**26
  max_bytes: int = 2**28
  background: tuple[int, int, int] = WHITE

  def checked(self) -> "Rules":
    """These rules; raises a ValueError if they cannot be."""
    if unknown := sorted(set(self.convert) - set(CONVERSIONS)):
      raise ValueError(
        f"Unknown conversion {', '.join(unknown)}. Choose from: {', '.join(CONVERSIONS)}."
      )
    if not 1 <= self.max_pixels <= 178_956_970 or self.max_bytes < 1:
      raise ValueError(
        f"max_pixels={self.max_pixels} must be from 1 to 178956970 (Pillow's own limit), and "
        f"max_bytes={self.max_bytes} at least 1."
      )
    return self._replace(convert=tuple(sorted(set(self.convert))))


DEFAULT = Rules()


class Damaged(ValueError):
  """A file that is no sound picture: what `max_bad` counts."""


class Refused(ValueError):
  """A sound picture that the rules do not let through: never left out without being asked."""


class Survey(NamedTuple):
  """What the headers of many files say.

  Attributes:
    size: height and width of all, after orientation.
    gray: whether all are.
    kinds: conversion, or "orientation" -> how many files take it.
    damaged: place in the list -> what is wrong.
  """

  size: tuple[int, int]
  gray: bool
  kinds: dict[str, int]
  damaged: dict[int, str]


def survey(paths: Sequence[Path], rules: Rules, max_bad: int = 0) -> Survey:
  """Looks at the headers of files that must all have one size; pixels only of some with alpha.

  Raises:
    Damaged: more than `max_bad` headers cannot be read.
    Refused: sizes differ, or a picture needs a conversion that `rules` does not make.
  """
  size, first, gray, damaged, kinds = None, paths[0], True, {}, collections.Counter()
  see_through: list[Path] = []
  for i, path in enumerate(paths):
    try:
      this, is_gray, found = _look(path, rules)
    except Damaged as error:
      damaged[i] = str(error)
      if len(damaged) > max_bad:
        raise
      continue
    if size is None:
      size, first = this, path
    if this != size:
      raise Refused(
        f"{path} is {this[0]}x{this[1]} (height x width), but {first} is {size[0]}x{size[1]}. All "
        "images must have one size: crop and resize them first, as cmjax prepare does."
      )
    gray = gray and is_gray
    kinds.update(kind for kind in found if kind != "alpha")
    if "alpha" in found:
      see_through.append(path)
  if size is None:
    raise Damaged(f"None of {len(paths)} pictures can be read: {damaged[0]}")
  for path in see_through[:: max(1, len(see_through) // ALPHA_PROBES)]:
    try:
      open_picture(path, str(path), rules)
    except Damaged:  # to be met again, and counted, when it is read
      pass
  return Survey(size, gray, dict(sorted(kinds.items())), damaged)


def _look(path: Path, rules: Rules) -> tuple[tuple[int, int], bool, tuple[str, ...]]:
  """Height and width, whether it is gray, and its kinds, from its header alone."""
  name = str(path)
  try:
    with _regular(path, rules).open("rb") as file:
      header = _header(file, name)
      image, kinds = _opened(file, header, name, rules)
      with image:
        width, height = image.size
        if header.orientation > 4 and header.format != "TIFF":
          width, height = height, width
        return (height, width), _is_gray(image.mode), kinds
  except OSError as error:
    raise _damaged(name, error) from error


def _header(file: io.BufferedReader, name: str) -> image_headers.Header:
  """The header of an open file, of which no more is read than it takes."""
  data = b""
  while True:
    more = file.read(max(HEAD_BYTES, len(data)))
    data += more
    try:
      return image_headers.read(data, whole=False)
    except (EOFError, ValueError) as error:
      if isinstance(error, EOFError) and more:
        continue
      raise _damaged(name, error) from error


def read_pixels(path: Path, shape: tuple[int, ...], rules: Rules = DEFAULT) -> np.ndarray:
  """The picture as uint8 `shape`, [h, w, 1] in gray or [h, w, 3] in RGB.

  Raises:
    Damaged: it cannot be decoded.
    Refused: it has another size, or needs a conversion that `rules` does not make.
  """
  image, _ = open_picture(path, str(path), rules)
  if (image.height, image.width) != tuple(shape[:2]):
    raise Refused(
      f"{path} is {image.height}x{image.width} (height x width), but the others are "
      f"{shape[0]}x{shape[1]}. Was it replaced? All images must have one size."
    )
  return np.asarray(image.convert("L" if shape[-1] == 1 else "RGB")).reshape(shape)


def open_picture(
  file: Path | io.BytesIO, name: str, rules: Rules = DEFAULT
) -> tuple[Image.Image, tuple[str, ...]]:
  """A picture in Pillow's mode L or RGB, by the rules of this module.

  Args:
    file: its bytes, or a path.
    name: for the errors.
    rules: which conversions are made, and the limits.

  Returns:
    The picture, and which of `CONVERSIONS`, and "orientation", were made.

  Raises:
    Damaged: it is no picture of these formats, or cannot be decoded to the end.
    Refused: it is of a kind that may not be converted, or too large.
  """
  data = _bytes(file, name, rules)
  try:
    header = image_headers.read(data, whole=True)
  except (EOFError, ValueError) as error:
    raise _damaged(name, error) from error
  if ImageFile.LOAD_TRUNCATED_IMAGES:
    raise Refused(
      "Some library has set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, by which half a picture would "
      "pass for a whole one. Set it to False."
    )
  image, kinds = _opened(io.BytesIO(data), header, name, rules)
  with image:
    try:
      image.load()
      if "alpha" in kinds and not _is_see_through(image):
        kinds = tuple(kind for kind in kinds if kind != "alpha")
      _check_kinds(kinds, image.mode, name, rules)
      plain = _plain(image, "alpha" in kinds, name, rules.background)
    except Refused:
      raise
    except Exception as error:  # Pillow's decoders raise nearly anything on foreign bytes
      raise _damaged(name, error) from error
  if header.orientation > 1 and header.format != "TIFF":  # of a TIFF Pillow applies it
    plain = plain.transpose(_TURNS[header.orientation])
  return plain, kinds


def _bytes(file: Path | io.BytesIO, name: str, rules: Rules) -> bytes:
  if isinstance(file, io.BytesIO):
    _check_bytes(file.getbuffer().nbytes, name, rules)
    return file.getvalue()
  try:
    return _regular(file, rules).read_bytes()
  except OSError as error:
    raise _damaged(name, error) from error


def _regular(path: Path, rules: Rules) -> Path:
  """The path, if it is of a file that can be read to its end, and is not too large."""
  status = path.stat()
  if not stat.S_ISREG(status.st_mode):
    raise OSError("it is no regular file")
  _check_bytes(status.st_size, str(path), rules)
  return path


def _check_bytes(size: int, name: str, rules: Rules) -> None:
  if size > rules.max_bytes:
    raise Refused(
      f"{name} has {size:,} bytes, more than max_bytes={rules.max_bytes}. If it is sound, raise "
      "that: --max_bytes of cmjax prepare, data.folder.max_bytes of a config."
    )


def _check_size(size: tuple[int, int], name: str, rules: Rules) -> None:
  if size[0] * size[1] > rules.max_pixels:
    raise Refused(
      f"{name} has {size[1]}x{size[0]} pixels, more than max_pixels={rules.max_pixels}. If it is "
      "sound, raise that: --max_pixels of cmjax prepare, data.folder.max_pixels of a config."
    )


def _opened(
  file: io.BytesIO | io.BufferedReader, header: image_headers.Header, name: str, rules: Rules
) -> tuple[ImageFile.ImageFile, tuple[str, ...]]:
  """Pillow's image, not decoded yet, and its kinds; alpha may still turn out to be opaque."""
  if header.size:
    _check_size(header.size, name, rules)
  try:
    file.seek(0)
    image = Image.open(file, formats=(header.format,))
    kinds = _kinds(image, header)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise Refused(
      f"{name} has more pixels than max_pixels={rules.max_pixels}, which --max_pixels of cmjax "
      f"prepare, or data.folder.max_pixels of a config, raises. Pillow: {error}"
    ) from error
  except Exception as error:  # Pillow's readers raise nearly anything on foreign bytes
    raise _damaged(name, error) from error
  _check_size(image.size, name, rules)
  _check_kinds([kind for kind in kinds if kind != "alpha"], image.mode, name, rules)
  if image.mode not in PLAIN_MODES and not _is_deep(image.mode):
    raise Refused(f"{name} has Pillow's mode {image.mode}. Convert it to 8 bits of RGB.")
  return image, kinds


def _damaged(name: str, error: Exception) -> Damaged:
  reason = str(error).rstrip(".") or type(error).__name__
  return Damaged(f"Cannot decode {name}: {reason}. Remove or replace it.")


def _kinds(image: ImageFile.ImageFile, header: image_headers.Header) -> tuple[str, ...]:
  """Which of `CONVERSIONS`, and "orientation", an open image takes, before it is decoded."""
  # Pillow reduces 16-bit RGB by itself, and only the raw mode tells.
  last = [tile[-1] for tile in image.tile]
  raw = [part for parts in last for part in (parts if isinstance(parts, tuple) else (parts,))]
  found = {
    "palette": image.mode in ("P", "PA"),
    "alpha": image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info,
    "cmyk": image.mode == "CMYK",
    "16-bit": _is_deep(image.mode) or any(";16" in str(mode) for mode in raw),
    # MPO: a camera's JPEG with another view, or a preview, behind it.
    "animated": getattr(image, "is_animated", False) and image.format != "MPO",
    "orientation": header.orientation > 1,
  }
  return tuple(kind for kind, is_so in found.items() if is_so)


def _check_kinds(kinds: Sequence[str], mode: str, name: str, rules: Rules) -> None:
  refused = [kind for kind in kinds if kind in CONVERSIONS and kind not in rules.convert]
  if refused:
    raise Refused(
      f"{name} is {' and '.join(refused)} (Pillow's mode {mode}). Convert it yourself to 8 bits of "
      f"gray or RGB, or add {','.join(refused)} to --convert (data.folder.convert of a config): "
      f"{'; '.join(CONVERSIONS[kind] for kind in refused)}."
    )


def _is_deep(mode: str) -> bool:
  return mode[:1] in ("I", "F")


def _is_gray(mode: str) -> bool:
  return mode in GRAY_MODES or _is_deep(mode)


def _is_see_through(image: Image.Image) -> bool:
  """Whether any pixel of a decoded image is not opaque."""
  if _is_deep(image.mode):
    return True  # a gray value that counts as transparent: laying it over white is not built
  return image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def _plain(
  image: Image.Image, see_through: bool, name: str, background: tuple[int, int, int]
) -> Image.Image:
  """The decoded image in mode L or RGB."""
  if _is_deep(image.mode):
    values = np.asarray(image)
    if see_through or image.mode == "F" or values.min() < 0 or values.max() > 65535:
      raise Refused(
        f"{name} (Pillow's mode {image.mode}) has transparency, or values beyond 16 bits. Convert "
        "it to 8 bits of gray or RGB."
      )
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
  target = "L" if image.mode in GRAY_MODES else "RGB"
  if image.mode == "P" and "transparency" in image.info:
    image = image.convert("RGBA")
  if not see_through:
    return image.convert(target)
  colours = image.convert("RGBA")
  below = Image.new("RGB", image.size, background)
  below.paste(colours.convert("RGB"), mask=colours.getchannel("A"))
  return below.convert(target)


def colour(text: str) -> tuple[int, int, int]:
  """Red, green and blue of a colour's name or #rrggbb.

  >>> colour("white"), colour("#ff8000")
  ((255, 255, 255), (255, 128, 0))

  Raises:
    ValueError: it names none.
  """
  try:
    red, green, blue, *alpha = ImageColor.getrgb(text)
  except ValueError:
    red, green, blue, alpha = 0, 0, 0, [0]
  if alpha:
    raise ValueError(f"{text!r} is no colour: white, black, gray or #rrggbb.")
  return red, green, blue
