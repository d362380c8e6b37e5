"""The line that every program which reads data begins with, and what in it cannot be meant."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cmjax.data import image_lists, pixel_range, sources

logger = logging.getLogger("cmjax")
SHOWN = 12  # classes that are named
VALUES = 2**22  # of pixels that mean and std are taken from, in 8 to 1,024 elements
DARK = 32  # of 255: as far as the brightest pixel of all


class Summary(NamedTuple):
  """What there is in a source.

  Attributes:
    line: for people.
    mean: of the elements that were looked at, on the scale of [-1, 1].
    std: likewise.
    warnings: what is not plausible, a sentence each.
  """

  line: str
  mean: float
  std: float
  warnings: list[str]


def log(source: sources.Source, what: str, *, sigma_data: float | None = None) -> Summary:
  """Says what is in a source, and warns of what cannot be meant."""
  summary = summarise(source, what, sigma_data=sigma_data)
  logger.info("%s", summary.line)
  for warning in summary.warnings:
    logger.warning("%s: %s", what, warning)
  return summary


def summarise(source: sources.Source, what: str, *, sigma_data: float | None = None) -> Summary:
  """Counts, shape, classes and what was passed over; mean and std of a few elements."""
  limit = min(max(VALUES // math.prod(source.shape), 8), 1024)
  some, _ = sources.as_array(source, limit=limit)
  x = sources.scaled(some)
  mean, std = float(x.mean()), float(x.std())
  noun = "images" if len(source.shape) > 1 else "points"
  counts = getattr(source, "class_counts", None)
  parts = [f"{what}: {len(source):,} {noun} of {'x'.join(map(str, source.shape))}"]
  parts.append(classes(getattr(source, "class_names", None), source.num_classes, counts))
  if converted := getattr(source, "converted", None):
    parts.append(f"converted: {image_lists.told(converted)}")
  if passed_over := getattr(source, "passed_over", None):
    parts.append(f"passed over: {image_lists.told(passed_over)}")
  beside = "" if sigma_data is None else f" (sigma_data {sigma_data:g})"
  of = "" if len(some) == len(source) else f" of {len(some):,} of them"
  parts.append(f"mean {mean:.3f}, std {std:.3f}{of}{beside}")
  return Summary("; ".join(parts) + ".", mean, std, _warnings(source, some))


def classes(names: Sequence[str] | None, num_classes: int, counts: Mapping[int, int] | None) -> str:
  """Classes in words, with their counts where those are known.

  >>> classes(["cat", "dog"], 2, {0: 3, 1: 1200})
  '2 classes (cat 3, dog 1,200)'
  """
  if not num_classes:
    return "no classes"
  shown = range(min(num_classes, SHOWN))
  name = lambda i: str(names[i] if names and i < len(names) else i)
  words = [name(i) + (f" {counts.get(i, 0):,}" if counts else "") for i in shown]
  if num_classes > SHOWN:
    words.append("...")
    if counts:
      fewest = min(counts.values()) if len(counts) == num_classes else 0
      words.append(f"{fewest:,} to {max(counts.values()):,} of each")
  return f"{num_classes:,} class{'es' * (num_classes > 1)} ({', '.join(words)})"


def _warnings(source: sources.Source, some: np.ndarray) -> list[str]:
  found = []
  counts = getattr(source, "class_counts", None)
  empty = source.num_classes - len(counts) if counts is not None else 0
  if empty > 0 and counts is not None:
    first = next(i for i in range(source.num_classes) if i not in counts)
    found.append(
      f"{empty:,} of {source.num_classes:,} classes have no image, such as {first}. Do the labels "
      "begin at 1?"
    )
  try:
    pixel_range.check(some, f"what was looked at ({len(some):,} images)")
  except ValueError as error:
    found.append(str(error))
  if some.ndim > 2 and some.dtype == np.uint8 and 1 < some.max() <= DARK:
    found.append(f"no value is above {some.max()} of 255: were they scaled?")
  if some.min() == some.max():
    found.append("all values are equal.")
  return found


def compare(images: Summary, data: Summary) -> str | None:
  """A sentence where images have another range than the data that they are compared with."""
  if abs(images.mean - data.mean) <= 0.5 and data.std / 2 <= images.std <= 2 * data.std:
    return None
  return (
    f"the images have mean {images.mean:.3f} and std {images.std:.3f}, the data {data.mean:.3f} "
    f"and {data.std:.3f}. Are they scaled alike? Both are taken to be in [-1, 1], or 0 to 255."
  )
