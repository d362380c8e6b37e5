"""A grid of images with the names of their classes."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmjax.run import writer

MOST_COLUMNS = 20  # classes that have a column each
FONT_SIZE, LINE = 11, 15  # pixels
PAPER, INK = (255, 255, 255), (0, 0, 0)


def labelled_grid(images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Images side by side under the names of their classes.

  Of few classes that come in turn each has a column, with its name on top. Otherwise the name of
  each image stands below it. Of names that are too long the start is shown.

  Args:
    images: [n, h, w, c] in [-1, 1], as `writer.grid` takes them.
    labels: [n], the class of each.
    names: of all classes.

  Returns:
    uint8 [H, W, 3].
  """
  count = len(names)
  if count <= MOST_COLUMNS and np.array_equal(labels, np.arange(len(labels)) % count):
    tiles = writer.grid(images, columns=count)
    width = (tiles.shape[1] + 1) // count  # of an image, and the line beside it
    top = np.concatenate([_line(one, width) for one in names[: len(images)]], axis=1)
    canvas = np.full((LINE, tiles.shape[1], 3), PAPER, np.uint8)
    canvas[:, : top.shape[1]] = top[:, : tiles.shape[1]]
    return np.concatenate([canvas, tiles])
  columns = math.ceil(math.sqrt(len(images)))
  tiles = [writer.grid(image[None]) for image in images]
  height, width = tiles[0].shape[0] + LINE, tiles[0].shape[1] + 1
  canvas = np.full((math.ceil(len(images) / columns) * height, columns * width, 3), PAPER, np.uint8)
  for i, tile in enumerate(tiles):
    y, x = i // columns * height, i % columns * width
    canvas[y : y + height - LINE, x : x + width - 1] = tile
    canvas[y + height - LINE : y + height, x : x + width] = _line(names[int(labels[i])], width)
  return canvas


def _line(name: str, width: int) -> np.ndarray:
  """A name in black on white, in the middle: uint8 [LINE, width, 3]."""
  picture = Image.new("RGB", (width, LINE), PAPER)
  draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
  text = " ".join(name.split())
  while len(text) > 1 and draw.textlength(text, font) > width - 2:
    text = text[:-1]
  draw.text((width / 2, LINE / 2), text, INK, font, anchor="mm")
  return np.asarray(picture)
