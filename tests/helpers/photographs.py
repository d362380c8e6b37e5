"""Pictures as people have them: made here, of many sizes and kinds, some broken."""

import io

import numpy as np
from PIL import Image, ImageDraw


def draw(rng, size):
  """A picture of a ball before a sky and a ground: smooth, with a few things that vary."""
  height, width = size
  top, bottom = rng.integers((90, 120, 170), (150, 190, 255)), rng.integers(20, 120, 3)
  horizon = rng.uniform(0.45, 0.75)
  rows = np.linspace(0, 1, height)[:, None, None]
  pixels = np.where(rows < horizon, top * (0.6 + 0.4 * rows / horizon), bottom * rows)
  image = Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).astype(np.uint8))
  side = min(size)
  radius = rng.uniform(0.1, 0.25) * side
  x, y = width / 2 + rng.uniform(-0.2, 0.2) * side, rng.uniform(0.3, 0.7) * height
  colour = tuple(int(c) for c in rng.integers((150, 40, 0), (255, 160, 90)))
  ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
  return image


def write(folder, num, *, sizes=(40, 120), broken=0, seed=0):
  """`num` pictures in subfolders, in turn JPEG, PNG, PNG with alpha, turned JPEG, gray, palette.

  Beside them `broken` files that are cut off, and one that is no picture.
  """
  rng = np.random.default_rng(seed)
  for i in range(num):
    image = draw(rng, rng.integers(*sizes, 2))
    below = folder / f"{2020 + i % 3}" / f"trip {i % 2}"
    below.mkdir(parents=True, exist_ok=True)
    _save(image, below / f"IMG_{i:05}", i % 6)
  whole = io.BytesIO()
  draw(rng, (80, 80)).save(whole, "JPEG")
  for i in range(broken):
    (folder / f"broken_{i}.jpg").write_bytes(whole.getvalue()[: 200 + i])
  (folder / "notes.txt").write_text("not a picture")


def _save(image, path, kind):
  if kind == 2:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
  elif kind == 4:
    image = image.convert("L")
  elif kind == 5:
    image = image.quantize(64)
  turned = Image.Exif()
  turned[0x0112] = 6
  options = {"exif": turned} if kind == 3 else {}
  image.save(path.with_suffix(".jpg" if kind in (0, 3) else ".png"), **options)
