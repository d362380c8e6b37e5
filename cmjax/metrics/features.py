"""What a detector sees in a set of images, gathered from any batches on any number of processes.

Each image has a number. Every process looks at some of them, in batches of any size, and what comes
out is the same: rows are put in the order of the numbers, sums are merged in float64, and a number
that was seen twice is an error. `digest` tells sets of images apart, in whatever order.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cmjax.metrics import frechet

# Of this process: the numbers of images [b], the images [b, *d], and labels [b] or None.
ImageBatch = tuple[np.ndarray, np.ndarray, np.ndarray | None]
# An array -> those that all processes give, in their order.
Everyone = Callable[[np.ndarray], list[np.ndarray]]

# What can be kept: sums of the features and of the spatial ones; the features themselves, the
# spatial ones, the logits.
KINDS = ("moments", "spatial_moments", "rows", "spatial_rows", "logits")


class Features(NamedTuple):
  """A set of images as seen by a detector; what was not asked for is None.

  Attributes:
    num: of images.
    digest: of the images themselves, hexadecimal; "" where they were not seen.
    moments: of the features.
    spatial_moments: of the spatial features.
    rows: the features [n, d], by the numbers of the images.
    spatial_rows: [n, d_s].
    logits: [n, k].
    labels: int64 [n], where the images have some.
  """

  num: int
  digest: str
  moments: frechet.Moments | None = None
  spatial_moments: frechet.Moments | None = None
  rows: np.ndarray | None = None
  spatial_rows: np.ndarray | None = None
  logits: np.ndarray | None = None
  labels: np.ndarray | None = None


class Reference(NamedTuple):
  """What samples are compared with.

  Attributes:
    features: of the reference; `num` is 0 where its file does not say it.
    record: for JSON: kind, where it is from, digest or sha256, num, the detector where it is known.
    images: uint8 [n, h, w, c], of which features can still be made; None without.
  """

  features: Features
  record: dict[str, Any]
  images: np.ndarray | None = None


def alone(array: np.ndarray) -> list[np.ndarray]:
  """The one process's: what `everyone` is where there are no others."""
  return [array]


def collect(
  batches: Iterable[ImageBatch],
  apply: Callable[[np.ndarray], Any],
  *,
  keep: Collection[str],
  everyone: Everyone = alone,
  rows: int = 1,
) -> Features:
  """What a detector sees in the images of all processes' batches together.

  Args:
    batches: this process's; each number is in one batch of one process.
    apply: a detector's, images -> Outputs.
    keep: which of `KINDS`.
    everyone: gathers from all processes, each of which must call this.
    rows: images that the detector looks at together: smaller batches wait for each other, since
      each would be filled up to as many (on 64 chips a batch of 500 is 8 images for each).

  Raises:
    ValueError: there are no images, one was seen twice, or the detector has no such output.
  """
  numbers, labels, digest = [], [], 0
  kept: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
  sums: dict[str, frechet.Moments | None] = dict.fromkeys(KINDS[:2])
  for ids, images, classes in _of_size(batches, rows):
    outputs = apply(images)
    numbers.append(np.asarray(ids, np.int64))
    digest += sum(map(_digest, images))
    if classes is not None:
      labels.append(np.asarray(classes, np.int64))
    for kind in keep:
      values = _output(outputs, kind)
      if kind in sums:
        sums[kind] = frechet.merge_all([sums[kind], frechet.moments(values)])
      else:
        kept[kind].append(np.asarray(values))
  return _together(numbers, labels, digest, sums, kept, keep, everyone)


def _of_size(batches: Iterable[ImageBatch], rows: int) -> Iterator[ImageBatch]:
  """The same images in batches of a multiple of `rows`, but for the last; none is empty."""
  waiting: list[ImageBatch] = []
  for batch in batches:
    if not len(batch[0]):
      continue
    waiting.append(batch)
    num = sum(len(ids) for ids, _, _ in waiting)
    if num < rows:
      continue
    joined = _joined(waiting)
    whole = num // rows * rows
    yield _cut(joined, slice(0, whole))
    waiting = [_cut(joined, slice(whole, num))] if whole < num else []
  if waiting:
    yield _joined(waiting)


def _joined(batches: list[ImageBatch]) -> ImageBatch:
  if len(batches) == 1:
    return batches[0]
  ids, images, classes = zip(*batches, strict=True)
  labelled = [one for one in classes if one is not None]
  together = np.concatenate(labelled) if labelled else None
  return np.concatenate(ids), np.concatenate(images), together


def _cut(batch: ImageBatch, rows: slice) -> ImageBatch:
  ids, images, classes = batch
  return ids[rows], images[rows], None if classes is None else classes[rows]


def of_class(features: Features, label: int) -> Features:
  """Those of one class, from rows and labels that were kept."""
  assert features.labels is not None, "classes are asked for where there are labels"
  chosen = features.labels == label
  part = lambda rows: None if rows is None else rows[chosen]
  moments = lambda rows: None if rows is None else frechet.moments(rows[chosen])
  return Features(
    num=int(chosen.sum()),
    digest="",
    moments=moments(features.rows),
    spatial_moments=moments(features.spatial_rows),
    rows=part(features.rows),
    spatial_rows=part(features.spatial_rows),
    logits=part(features.logits),
    labels=part(features.labels),
  )


def _output(outputs: Any, kind: str) -> np.ndarray:
  field = {"moments": "features", "rows": "features", "logits": "logits"}.get(kind, "spatial")
  values = getattr(outputs, field)
  if values is None:
    raise ValueError(
      f"This detector has no {field}: leave out the score that needs them "
      f"({'sfid' if field == 'spatial' else 'inception_score'}), or take another detector."
    )
  return values


def _together(
  numbers: list[np.ndarray],
  labels: list[np.ndarray],
  digest: int,
  sums: dict[str, frechet.Moments | None],
  kept: dict[str, list[np.ndarray]],
  keep: Collection[str],
  everyone: Everyone,
) -> Features:
  gather = lambda parts: _concatenated(
    everyone(np.concatenate(parts) if parts else np.zeros(0, np.int64))
  )
  ids = gather(numbers)
  if not len(ids):
    raise ValueError("There are no images to score.")
  order = np.argsort(ids)
  if repeated := int(np.sum(np.diff(ids[order]) == 0)):
    raise ValueError(
      f"{repeated} images were counted twice: the batches of all processes must be apart."
    )
  ordered = lambda parts: gather(parts)[order]
  digests = everyone(np.frombuffer((digest % 2**256).to_bytes(32, "big"), np.uint8))
  total = sum(int.from_bytes(one.tobytes(), "big") for one in digests) % 2**256
  all_labels = gather(labels)
  if len(all_labels) not in (0, len(ids)):
    raise ValueError(f"Of {len(ids)} images {len(all_labels)} have labels: all must, or none.")
  found: dict[str, Any] = {
    kind: _merged(sums[kind], everyone) if kind in sums else ordered(kept[kind]) for kind in keep
  }
  return Features(
    len(ids), f"{total:064x}", labels=all_labels[order] if len(all_labels) else None, **found
  )


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
  """Of the processes that have any; where none has, the first's nothing."""
  return np.concatenate([part for part in parts if len(part)] or parts[:1])


def _merged(moments: frechet.Moments | None, everyone: Everyone) -> frechet.Moments:
  none = frechet.Moments(0, np.zeros(0), np.zeros((0, 0)))
  num, mean, scatter = (everyone(np.asarray(part)) for part in moments or none)
  parts = [frechet.Moments(int(n), *rest) for n, *rest in zip(num, mean, scatter, strict=True)]
  merged = frechet.merge_all([part for part in parts if part.num])
  assert merged is not None, "there are images, so some process has moments"
  return merged


def _digest(image: np.ndarray) -> int:
  """Of one image; their sum knows nothing of order, and a second copy changes it."""
  shape = ",".join(map(str, image.shape))
  data = np.ascontiguousarray(image)
  return int.from_bytes(hashlib.sha256(f"{data.dtype} {shape} ".encode() + data.tobytes()).digest())
