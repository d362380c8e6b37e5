"""Pictures to pixels under a recipe, some at a time, with all that is to be told of them."""

import collections
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cmjax.data import image_files, shards
from cmjax.data.prepare import crops
from cmjax.data.prepare.originals import Originals


class Recipe(NamedTuple):
  """What is done with each picture.

  Attributes:
    transform: of `crops.TRANSFORMS`.
    resolution: of the square; None with "none".
    filter: of `crops.FILTERS`; None: the transform's own.
    channels: 1 or 3; None: 1 if the first picture is gray, else 3.
    convert: which `image_files.CONVERSIONS` are made; the others are errors.
    background: that alpha is laid over.
  """

  transform: str = "none"
  resolution: int | None = None
  filter: str | None = None
  channels: int | None = None
  convert: tuple[str, ...] = ()
  background: tuple[int, int, int] = image_files.WHITE

  @property
  def record(self) -> dict[str, Any]:
    """It, for the manifest; a background of white is not said, as in sets of before."""
    said = self._asdict() | {"convert": list(self.convert), "background": list(self.background)}
    if self.background == image_files.WHITE:
      del said["background"]
    return said


class Stretch(NamedTuple):
  """What is known of the pictures of one shard, beside their pixels."""

  hashes: list[str]  # of the pixels, in order
  indices: list[int]  # of the pictures, without those left out
  converted: dict[str, int]  # kind of conversion -> how many
  left_out: list[str]  # why


class Work(NamedTuple):
  """What all shards have in common; it is sent to each process once."""

  originals: Originals
  recipe: Recipe
  shape: tuple[int, ...]  # of the pixels
  layout: shards.Layout
  max_bad: int

  def load(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], Stretch]:
    """The pixels and labels of pictures, and what there is to know of them."""
    images, labels = [], []
    stretch = Stretch([], [], {}, [])
    counts = collections.Counter()
    for i in map(int, indices):
      try:
        pixels, kinds = _pixels(self.originals, i, self.recipe)
      except image_files.Refused:
        raise  # not damaged: leaving it out would be the user's choice, not ours
      except ValueError as error:
        stretch.left_out.append(str(error))
        if len(stretch.left_out) > self.max_bad:
          raise
        continue
      if pixels.shape != self.shape:
        raise ValueError(
          f"{self.originals.names[i]} is {_size(pixels.shape)}, but the first picture is "
          f"{_size(self.shape)}. All must have one size: take --transform=center-crop and a "
          "--resolution."
        )
      label = self._label(i)
      images.append(pixels)
      labels.append(label)
      counts.update(kinds)
      stretch.hashes.append(hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest())
      stretch.indices.append(i)
    arrays = {"image": np.stack(images) if images else np.zeros((0, *self.shape), np.uint8)}
    if self.layout.has_label:
      arrays["label"] = np.array(labels, np.int32)
    return arrays, stretch._replace(converted=dict(sorted(counts.items())))

  def _label(self, i: int) -> int:
    if not self.layout.has_label:
      return -1
    label, count = self.originals.label(i), len(self.originals.class_names)
    if not 0 <= label < count:
      raise ValueError(
        f"The label of {self.originals.names[i]} is {label}, but there are {count} classes."
      )
    return label


def first_shape(
  originals: Originals, chosen: np.ndarray, recipe: Recipe, max_bad: int
) -> tuple[int, ...]:
  """The shape of the pixels of the first picture that can be read."""
  for count, i in enumerate(map(int, chosen)):
    try:
      return _pixels(originals, i, recipe)[0].shape
    except ValueError as error:
      if isinstance(error, image_files.Refused) or count >= max_bad:
        raise
  raise ValueError("None of the pictures can be read.")


def _pixels(originals: Originals, i: int, recipe: Recipe) -> tuple[np.ndarray, tuple[str, ...]]:
  """Picture i as uint8 [h, w, c] under the recipe, and which conversions that took.

  EDM2's latents are float32 [h, w, 2 c] as they are.
  """
  if originals.moments:
    return originals.array(i), ()
  image, kinds = originals.picture(i, recipe.convert, recipe.background)
  if recipe.channels == 1 and image.mode == "RGB":
    raise image_files.Refused(
      f"{originals.names[i]} has colours, but this set is gray, as its first picture or --channels "
      "says. Give --channels=3, for which gray ones are repeated, or remove the others."
    )
  if recipe.channels == 3 and image.mode == "L":
    image, kinds = image.convert("RGB"), (*kinds, "gray")
  image = crops.apply(image, recipe.transform, recipe.resolution, recipe.filter)
  pixels = np.asarray(image)
  return (pixels[..., None] if pixels.ndim == 2 else pixels), kinds


def check(recipe: Recipe) -> Recipe:
  """The recipe with its filter; raises a ValueError for one that cannot be."""
  convert = image_files.Rules(convert=recipe.convert).checked().convert
  if recipe.channels not in (None, 1, 3):
    raise ValueError(f"channels={recipe.channels}: use 3 (RGB) or 1 (gray), or leave it out.")
  filter = crops.check(recipe.transform, recipe.resolution, recipe.filter)
  return recipe._replace(filter=filter, convert=convert)


def joined(stretches: list[Stretch]) -> Stretch:
  """What is known of neighbours, as one."""
  hashes, indices, converted, left_out = zip(*stretches, strict=True)
  return Stretch(
    sum(hashes, []), sum(indices, []), total_by_kind(converted), sum(left_out, [])
  )  # fmt: skip


def total_by_kind(converted: Iterable[dict[str, int]]) -> dict[str, int]:
  """Counts by kind, added up."""
  return dict(sorted(sum(map(collections.Counter, converted), collections.Counter()).items()))


def _size(shape: tuple[int, ...]) -> str:
  return f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' * (shape[2] > 1)}"
