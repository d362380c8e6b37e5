"""Images that are there to be scored: somebody's samples, as a folder or as an .npz."""

import os
from pathlib import Path

import numpy as np

from cmjax.base import limits, paths
from cmjax.base.npz import opened
from cmjax.data import pixel_range, sources

# Arrays of images by the names that people give them, and the labels beside.
ARRAYS = {"arr_0": "arr_1", "images": "labels", "samples": "labels"}


def read(path: str | os.PathLike[str]) -> sources.Source:
  """The images in a folder (see `sources.folder`), or in an .npz.

  In an .npz they are `arr_0` (ADM's name, and mode sample's), `images` or else `samples`: uint8
  [n, h, w, c], or floats in [-1, 1] or latents; labels are `arr_1` or `labels`. Pickled objects are
  refused, not read.

  Raises:
    ValueError: there is no such folder or file, it is damaged, or holds no such array.
  """
  path = paths.local(path)
  if path.is_dir():
    return sources.folder(path)
  if path.suffix != ".npz" or not path.is_file():
    raise ValueError(f"There is no folder and no .npz of images at {path}.")
  try:
    with opened(path) as file:
      names = [name for name in ARRAYS if name in file]
      if names in (["arr_0", "samples"], ["images", "samples"]):  # the latents too that they are of
        names = names[:1]
      if len(names) != 1:
        raise ValueError(
          f"it has {', '.join(file) or 'nothing'}: one array must be named {', '.join(ARRAYS)}"
        )
      images, labels = file[names[0]], file.get(ARRAYS[names[0]])
  except ValueError as error:
    raise ValueError(f"{path} is no .npz of images: {error}.") from error
  return _checked(images, labels, path)


def _checked(images: np.ndarray, labels: np.ndarray | None, path: Path) -> sources.Source:
  floats = images.dtype.kind == "f"
  if images.ndim != 4 or not len(images) or not (floats or images.dtype == np.uint8):
    raise ValueError(
      f"{path}: images are {images.dtype} {list(images.shape)}, but must be uint8 [n, h, w, c], or "
      "floats in [-1, 1]."
    )
  pixel_range.check(images, str(path))
  if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
    raise ValueError(
      f"{path}: labels are {labels.dtype} {list(labels.shape)}, but must be integers "
      f"[{len(images)}], one of each image."
    )
  if labels is not None and labels.min() < 0:
    raise ValueError(f"{path}: labels must be from 0 up, got {labels.min()}. Renumber the classes.")
  num_classes = int(labels.max()) + 1 if labels is not None else 0
  limits.check("classes", num_classes, f"{path}: its labels speak of {num_classes} classes")
  return sources.ArraySource(images, labels, num_classes)
