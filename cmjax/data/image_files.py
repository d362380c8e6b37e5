"""PNG and JPEG files: which there are in a folder, their headers and their pixels."""

import io
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
GRAY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
# What is not 8 bits of gray or RGB, and what is done with it where that is asked for.
CONVERSIONS = {
  "palette": "its colours are looked up, which loses nothing",
  "alpha": "transparency is dropped; where it is opaque all over, that needs no asking",
  "cmyk": "by Pillow's formula, without a colour profile",
  "16-bit": "the upper 8 bits are kept",
  "animated": "the first frame is taken",
}
# What Pillow raises on a file that is no image, or only the start of one.
DAMAGED = (OSError, EOFError, ValueError, SyntaxError, KeyError, struct.error, zlib.error)


def find(path: Path) -> tuple[list[Path], list[int], int]:
  """Sorted files, their labels (empty without classes) and the number of classes.

  The files right in the folder `path`, or else those right in its subfolders: then each subfolder
  is a class, numbered by sorted name. Names that begin with a dot are passed over.

  Raises:
    ValueError: if there are no images, or some in the folder and some in subfolders.
  """
  if not path.is_dir():
    raise ValueError(f"No folder at {path}. Give the path of a folder of PNG or JPEG files.")
  images = _images_in(path)
  classes = {p: _images_in(p) for p in _visible(path) if p.is_dir()}
  if images and any(classes.values()):
    raise ValueError(f"{path} has images both in it and in subfolders. Move them to one level.")
  if images:
    return images, [], 0
  empty = [p.name for p, files in classes.items() if not files]
  if empty or not classes:
    where = f" in the subfolders {', '.join(empty)} of {path}" if classes else f" in {path}"
    raise ValueError(f"No PNG or JPEG files{where}. Add images, or remove what holds none.")
  pairs = [(file, label) for label, files in enumerate(classes.values()) for file in files]
  return [file for file, _ in pairs], [label for _, label in pairs], len(classes)


def _visible(path: Path) -> Iterator[Path]:
  return (p for p in sorted(path.iterdir()) if not p.name.startswith("."))


def _images_in(path: Path) -> list[Path]:
  return [p for p in _visible(path) if p.suffix.lower() in SUFFIXES and p.is_file()]


def read_headers(files: list[Path]) -> tuple[tuple[int, int], bool]:
  """Height and width of all files, and whether all are grayscale; reads no pixels.

  Raises:
    ValueError: if a header cannot be read, sizes differ or a channel has not 8 bits.
  """
  shape, gray = None, True
  for path in files:
    try:
      with Image.open(path) as file:
        this, mode = (file.height, file.width), file.mode
    except (*DAMAGED, Image.DecompressionBombError) as error:
      raise ValueError(f"Cannot read the image {path}: {error}. Remove or replace it.") from error
    shape = shape or this
    if this != shape:
      raise ValueError(
        f"{path} is {this[0]}x{this[1]} (height x width), but {files[0]} is "
        f"{shape[0]}x{shape[1]}. All images must have one size: crop and resize them first."
      )
    if mode not in GRAY_MODES + COLOUR_MODES:
      raise ValueError(f"{path} has Pillow's mode {mode!r}. Convert it to 8 bits per channel.")
    gray = gray and mode in GRAY_MODES
  assert shape is not None, "callers list at least one file"
  return shape, gray


def read_pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
  """The image as uint8 `shape`, [h, w, 1] in gray or [h, w, 3] in RGB, without alpha.

  Raises:
    ValueError: if it cannot be decoded.
  """
  try:
    with Image.open(path) as file:
      pixels = np.asarray(file.convert("L" if shape[-1] == 1 else "RGB"))
  except DAMAGED as error:
    raise ValueError(f"Cannot decode {path}: {error}. Replace the file.") from error
  return pixels.reshape(shape)


def open_picture(
  file: Path | io.BytesIO, name: str, convert: Collection[str] = ()
) -> tuple[Image.Image, tuple[str, ...]]:
  """A picture in Pillow's mode L or RGB, and which of `CONVERSIONS` it took.

  Pixels are as they are stored: no colour profile and no EXIF orientation is applied.

  Args:
    file: an open file, or a path.
    name: for the errors.
    convert: which conversions may be made.

  Raises:
    ValueError: if it cannot be decoded to the end, or is of a kind that may not be converted.
  """
  try:
    with Image.open(file) as image:
      kinds = _kinds(image)
      refused = [kind for kind in kinds if kind not in convert]
      if refused:
        raise Unconverted(
          f"{name} is {' and '.join(refused)} (Pillow's mode {image.mode}). Convert it yourself to "
          f"8 bits of gray or RGB, or add {','.join(refused)} to --convert: "
          f"{'; '.join(CONVERSIONS[kind] for kind in refused)}."
        )
      image.load()
      return _plain(image, name), kinds
  except (*DAMAGED, Image.DecompressionBombError) as error:
    if isinstance(error, Unconverted):
      raise
    raise ValueError(f"Cannot decode {name}: {error}. Remove or replace it.") from error


class Unconverted(ValueError):
  """A picture that is sound, but of a kind that may not be converted."""


def _kinds(image: Image.Image) -> tuple[str, ...]:
  """Which of `CONVERSIONS` an open image needs, before its pixels are read."""
  # Pillow reduces 16-bit RGB by itself, and only the raw mode tells.
  raw = [str(part) for tile in getattr(image, "tile", ()) for part in np.atleast_1d(tile[-1])]
  found = {
    "palette": image.mode in ("P", "PA"),
    "alpha": image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info,
    "cmyk": image.mode == "CMYK",
    "16-bit": image.mode[:1] in ("I", "F") or any(";16" in mode for mode in raw),
    # MPO: a camera's JPEG with another view, or a preview, behind it.
    "animated": getattr(image, "n_frames", 1) > 1 and image.format != "MPO",
  }
  if found["alpha"] and not found["palette"] and not found["animated"]:
    found["alpha"] = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] != 255
  return tuple(kind for kind, is_so in found.items() if is_so)


def _plain(image: Image.Image, name: str) -> Image.Image:
  """The loaded image in mode L or RGB."""
  if image.mode in ("I", "F") or image.mode.startswith("I;16"):
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535 or image.mode == "F":
      raise ValueError(f"mode {image.mode} has values beyond 16 bits")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
  if image.mode not in (*GRAY_MODES, "RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK"):
    raise Unconverted(f"{name} has Pillow's mode {image.mode}. Convert it to 8 bits of RGB.")
  return image.convert("L" if image.mode in GRAY_MODES else "RGB")
