"""Where images come from: random-access sources, in memory, in a folder or in a tfds data set.

Element i of a source is {"image": uint8 [h, w, c] or float32 [d], "label": int32}, without a label
where there are no classes. Nothing here shuffles or scales: `pipeline.dataset` does.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from cmjax.base import limits, paths
from cmjax.base.npz import opened
from cmjax.base.ranges import Count, Place, Range, Seed, Share, Where
from cmjax.data import image_files, image_lists, pixel_range
from cmjax.data import toy2d as toy2d_lib

logger = logging.getLogger("cmjax")
SPLITS = ("train", "test")


@runtime_checkable
class Source(Protocol):
  """What a data source offers; inherit from it and write the two methods without a body."""

  shape: tuple[int, ...]  # of one image or point
  num_classes: int  # 0 without labels
  record: dict[str, Any] | None = None  # how it was prepared, where that is known

  def __len__(self) -> int:
    """How many elements there are."""
    ...

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Element i, from any thread."""
    ...

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The elements at `indices` [b], stacked."""
    elements = [self[int(i)] for i in indices]
    return {name: np.stack([e[name] for e in elements]) for name in elements[0]}


class ArraySource(Source):
  """Arrays in memory: uint8 [n, h, w, c] or float32 [n, ...], taken as it is; labels or none."""

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    num_classes: int = 0,
    class_names: Sequence[str] = (),
  ):
    self.shape, self.num_classes = images.shape[1:], num_classes
    self.class_names = list(class_names)
    self._arrays = {"image": images}
    if labels is not None:
      self._arrays["label"] = labels.astype(np.int32)

  @property
  def class_counts(self) -> dict[int, int] | None:
    """Label -> number of images, of the labels that there are."""
    return count_labels(self._arrays.get("label"))

  def __len__(self) -> int:
    return len(self._arrays["image"])

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {name: array[i] for name, array in self._arrays.items()}

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The elements at `indices` [b], by one indexing of each array."""
    return {name: array[indices] for name, array in self._arrays.items()}


class Part(Source):
  """Some elements of a source, by their indices."""

  def __init__(self, source: Source, chosen: np.ndarray):
    self.shape, self.num_classes, self.record = source.shape, source.num_classes, source.record
    self._source, self._chosen = source, chosen

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._source[int(self._chosen[i])]

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The elements at `indices` [b], stacked."""
    return self._source.take(self._chosen[indices])


def count_labels(labels: Sequence[int] | np.ndarray | None) -> dict[int, int] | None:
  """Label -> how often it is there; None without labels."""
  if labels is None:
    return None
  values, counts = np.unique(labels, return_counts=True)  # bincount would make room for the largest
  return dict(zip(values.tolist(), counts.tolist(), strict=True))


def digits(*, split: str = "train") -> Source:
  """scikit-learn's 1,797 handwritten digits, uint8 [8, 8, 1], in 10 classes.

  Their values 0..16 become round(255 v / 16). Every fifth digit of each class, in the order of
  the file, is held out: 1,442 for training and 355 for the test. Neighbours in the file are often
  by the same writer, so the test split has the training split's distribution, not other writers.
  """
  _check_split(split)
  from sklearn.datasets import load_digits  # here, as the import takes longer than the data

  values, labels = load_digits(return_X_y=True)
  held_out = np.zeros(len(labels), bool)
  for label in range(10):
    held_out[np.flatnonzero(labels == label)[4::5]] = True
  chosen = held_out == (split == "test")
  images = np.round(values[chosen] * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
  return ArraySource(images, labels[chosen], num_classes=10)


def npz(
  path: Place | os.PathLike[str], *, split: str = "train", class_names: tuple[str, ...] = ()
) -> Source:
  """The arrays {split}_images, uint8 [n, h, w, c] or [n, h, w], and {split}_labels of an .npz.

  Floats [n, ...] are taken as they are: images in [-1, 1], latents of any number of channels,
  points. Labels are optional integers [n]; there are as many classes as the largest label of
  either split needs. The images are held in memory. Pickled objects are refused, not read.

  Args:
    path: of the file.
    split: "train" or "test".
    class_names: for lines and pictures, one for each class; (): their numbers.

  Raises:
    ValueError: if the file is missing or damaged, or its arrays are not those above; or there are
      more or fewer names than classes.
  """
  _check_split(split)
  arrays = _read_npz(paths.local(path), f"{split}_images")
  images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
  floats = images.dtype.kind == "f" and images.ndim > 1
  if not floats and (images.dtype != np.uint8 or images.ndim not in (3, 4)):
    raise ValueError(
      f"{path}: {split}_images is {images.dtype} {list(images.shape)}, but must be uint8 "
      "[n, h, w, c] or [n, h, w], or floats [n, ...]."
    )
  pixel_range.check(images, f"{path}: {split}_images")
  images = images.astype(np.float32) if floats else images
  num_classes = 0
  if labels is not None:
    if labels.shape != images.shape[:1]:
      raise ValueError(
        f"{path}: {split}_labels has the shape {list(labels.shape)}, but there are {len(images)} "
        f"images: it must be [{len(images)}], one label for each."
      )
    every_label = [arrays[f"{s}_labels"] for s in SPLITS if f"{s}_labels" in arrays]
    if any(a.dtype.kind not in "iu" or (a.size and a.min() < 0) for a in every_label):
      raise ValueError(
        f"{path}: labels must be integers from 0 up, got {[str(a.dtype) for a in every_label]} "
        f"with the smallest {[a.min() for a in every_label if a.size]}. Renumber the classes."
      )
    num_classes = max((int(a.max()) + 1 for a in every_label if a.size), default=0)
    limits.check("classes", num_classes, f"{path}: its labels speak of {num_classes} classes")
  if class_names and len(class_names) != num_classes:
    raise ValueError(
      f"{path} has {num_classes} classes, and data.npz.class_names has {len(class_names)} names: "
      "give one for each class, or none."
    )
  images = images[..., None] if images.ndim == 3 else images
  return ArraySource(images, labels, num_classes, class_names)


def _read_npz(path: Path, images: str) -> dict[str, np.ndarray]:
  """The array named `images` and all labels, or an error that says what is wrong with the file."""
  what = "an .npz with train_images (uint8), train_labels, test_images and test_labels"
  if not path.is_file():
    raise ValueError(f"No file at {path}. Give the path of {what}, written by numpy.savez.")
  try:
    with opened(path) as file:
      if images not in file:
        raise ValueError(f"it has no {images}, only: {', '.join(sorted(file)) or 'nothing'}")
      names = [images, *(f"{s}_labels" for s in SPLITS if f"{s}_labels" in file)]
      return {name: file[name] for name in names}
  except ValueError as error:
    raise ValueError(f"Cannot read {path}: {error}. It must be {what}, no objects.") from error


def folder(
  path: Place | os.PathLike[str],
  *,
  split: str = "train",
  channels: Annotated[int, Range(1, 3)] | None = None,
  held_out: Share = 0.0,
  labels: str | None = None,
  num_classes: Count | None = None,
  convert: Sequence[str] = (),
  max_bad: Annotated[int, Range(0)] = 0,
  max_pixels: Count = image_files.DEFAULT.max_pixels,
  max_bytes: Count = image_files.DEFAULT.max_bytes,
) -> Source:
  """Pictures of one size, by the rules of `image_lists` and `image_files`; decoded when read.

  Args:
    path: the folder.
    split: "train" or "test".
    channels: 3 for RGB, 1 for grayscale; None: 1 if every file is grayscale, else 3.
    held_out: the fraction that is the test split. Of the files i = 0, 1, ... in sorted order, i
      is held out where floor((i + 1) held_out) > floor(i held_out): evenly over the classes.
    labels: None: of dataset.json, or the subfolders; "none": no classes; or a JSON file.
    num_classes: where it is more than numbers in a JSON file show.
    convert: which of `image_files.CONVERSIONS` are made.
    max_bad: how many damaged files are passed over, each for the next sound one, before that is an
      error.
    max_pixels: of one picture.
    max_bytes: of one file.

  Raises:
    ValueError: there are no pictures, or some that the rules do not let through, or their classes
      cannot be told; on reading, if more than `max_bad` cannot be decoded.
  """
  _check_split(split)
  if channels not in (None, 1, 3):
    raise ValueError(f"channels={channels}: use 3 (RGB), 1 (grayscale) or None (as the files are).")
  if not 0.0 <= held_out < 1.0:
    raise ValueError(f"held_out={held_out} must be a fraction from 0 up to, but not, 1.")
  if max_bad < 0:
    raise ValueError(f"max_bad={max_bad} must be 0 or more.")
  kinds = convert.split(",") if isinstance(convert, str) else convert
  rules = image_files.Rules(tuple(filter(None, kinds)), max_pixels, max_bytes).checked()
  root = paths.local(path)
  if not root.is_dir():
    raise ValueError(f"No folder at {root}. Give the path of a folder of pictures.")
  listing = image_lists.of_folder(root, labels)
  numbered, class_names = image_lists.number_classes(listing.names, listing.labels, num_classes)
  steps = np.floor(np.arange(len(listing.names) + 1) * held_out)
  chosen = np.flatnonzero((np.diff(steps) > 0) == (split == "test"))
  if not len(chosen):
    raise ValueError(
      f"{path}: no images for split {split!r}: held_out={held_out} of {len(listing.names)} are "
      "held out for the test. Set held_out, such as 0.1, or give the test images their own folder."
    )
  survey = image_files.survey([root / name for name in listing.names], rules, max_bad)
  return _FolderSource(
    [root / listing.names[i] for i in chosen],
    None if numbered is None else numbered[chosen],
    (*survey.size, channels or (1 if survey.gray else 3)),
    class_names,
    rules,
    max_bad,
    listing.passed_over,
    survey.kinds,
  )


class _FolderSource(Source):
  """Image files, decoded as they are read; a damaged one is replaced by the next sound one."""

  def __init__(
    self,
    files: Sequence[Path],
    labels: np.ndarray | None,
    shape: tuple[int, ...],
    class_names: list[str],
    rules: image_files.Rules,
    max_bad: int,
    passed_over: dict[str, int],
    converted: dict[str, int],
  ):
    self.shape, self.num_classes = shape, len(class_names)
    self.class_names, self.passed_over, self.converted = class_names, passed_over, converted
    self._files, self._labels = files, labels
    self._rules, self._max_bad = rules, max_bad
    self._lock, self._bad = threading.Lock(), set()

  @property
  def class_counts(self) -> dict[int, int] | None:
    """Label -> number of files."""
    return count_labels(self._labels)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    for offset in range(len(self)):
      place = (i + offset) % len(self)
      try:
        image = image_files.read_pixels(self._files[place], self.shape, self._rules)
      except image_files.Damaged as error:
        self._count(place, error)
        continue
      element = {"image": image}
      return element if self._labels is None else element | {"label": self._labels[place]}
    raise AssertionError("the limit is reached before every file is damaged")

  def _count(self, place: int, error: image_files.Damaged) -> None:
    """Counts a damaged file, once; raises if there are too many."""
    with self._lock:
      if place not in self._bad and self._max_bad:
        logger.warning("%s The next one takes its place; %d so far.", error, len(self._bad) + 1)
      self._bad.add(place)
      too_many = len(self._bad) > min(self._max_bad, len(self) - 1)
    if too_many:
      raise image_files.Damaged(
        f"{error} That makes {len(self._bad)}, more than max_bad={self._max_bad}: raise that "
        "(data.folder.max_bad) to go on without them."
      ) from error


def tfds(
  dataset: str,
  *,
  split: str = "train",
  data_dir: Annotated[str, Where(("gs://",))] | os.PathLike[str] | None = None,
) -> Source:
  """The features "image" and, if it is a class label, "label" of a prepared tfds data set.

  Reads array_record files without TensorFlow; only preparing them needs it.

  Args:
    dataset: such as "cifar10" or "imagenet_resized/64x64".
    split: any of the data set, also a part such as "train[:90%]".
    data_dir: where it is prepared; by default tfds's own folder.

  Raises:
    ValueError: if the data set or split is unknown, it is not prepared here, or its images
      are not uint8 of one size.
  """
  data = _open_tfds(dataset, split, data_dir)
  features = data.dataset_info.features
  image = features["image"] if "image" in features else None
  # np_dtype and not dtype, which asks TensorFlow.
  if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape:
    got = "absent" if image is None else f"{np.dtype(image.np_dtype)} {list(image.shape)}"
    raise ValueError(
      f"The feature 'image' of {dataset!r} is {got}, but must be uint8 [h, w, c] of one size. "
      f"Its features: {', '.join(sorted(features))}. Choose a resized variant, or resize the "
      f"images once: python -m cmjax.data.prepare {dataset} --out DIR."
    )
  return _TfdsSource(data, tuple(image.shape))


def tfds_of_any_size(dataset: str, *, split: str = "train") -> "_TfdsSource":
  """The same with images of any size, to be prepared; prepared by tfds now, if need be.

  Its `shape` is () and its `class_names` are those of tfds.
  """
  data = _open_tfds(dataset, split, None, download=True)
  features = data.dataset_info.features
  if "image" not in features:
    raise ValueError(f"{dataset!r} has no feature 'image': {', '.join(sorted(features))}.")
  return _TfdsSource(data, ())


def _open_tfds(
  dataset: str, split: str, data_dir: str | os.PathLike[str] | None, *, download: bool = False
) -> Any:
  """tfds's own data source; a ValueError that says what to do where there is none."""
  import tensorflow_datasets as library  # here, as the import takes a second

  try:
    return library.data_source(dataset, split=split, data_dir=data_dir, download=download)
  except library.core.DatasetNotFoundError as error:
    raise ValueError(f"tfds knows no data set {dataset!r}. See tensorflow.org/datasets.") from error
  except (NotImplementedError, AssertionError, OSError, ImportError, ValueError, KeyError) as error:
    # Which of them a set raises that is not prepared depends on the version of tfds.
    if isinstance(error, (ValueError, KeyError)) and _is_prepared(dataset, data_dir):
      raise ValueError(f"tfds cannot read split {split!r} of {dataset!r}: {error}") from error
    option = f" --data_dir={data_dir}" if data_dir else ""
    raise ValueError(
      f"The tfds data set {dataset!r} is not prepared in {data_dir or 'the default folder of tfds'}"
      " as array_record. Prepare it once, with TensorFlow: pip install 'cmjax[prepare]', then "
      f"tfds build {dataset} --file_format=array_record{option}{_without_tfds(dataset)}"
    ) from error


def _is_prepared(dataset: str, data_dir: str | os.PathLike[str] | None) -> bool:
  """Whether tfds finds splits of a data set on this disk."""
  import tensorflow_datasets as library

  try:
    return bool(library.builder(dataset, data_dir=data_dir).info.splits)
  except (NotImplementedError, AssertionError, OSError, ImportError, ValueError, KeyError):
    return False


def _without_tfds(dataset: str) -> str:
  """The end of a message: which of the sets of `published_sets` needs no TensorFlow."""
  known = dataset in ("cifar10", "fashion_mnist", "mnist")
  return f". Or let cmjax download it, without TensorFlow: --config.data.name={dataset}" * known


class _TfdsSource(Source):
  """Records of tfds, without the features that are not used here."""

  def __init__(self, data: Any, shape: tuple[int, ...]):
    import tensorflow_datasets as library

    features = data.dataset_info.features
    label = features["label"] if "label" in features else None
    is_class = isinstance(label, library.features.ClassLabel)
    self.class_names: list[str] = list(label.names or ()) if is_class else []
    self.shape, self.num_classes = shape, (label.num_classes or 0) if is_class else 0
    self._data = data

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self._data[i]
    element = {"image": record["image"]}
    return element | {"label": np.int32(record["label"])} if self.num_classes else element


def toy2d(
  distribution: str, *, num_points: Count = 65_536, seed: Seed = 0, split: str = "train"
) -> Source:
  """Points float32 [2] of a distribution of `toy2d.py`; the splits are independent draws."""
  _check_split(split)
  if distribution not in toy2d_lib.DISTRIBUTIONS:
    choices = ", ".join(sorted(toy2d_lib.DISTRIBUTIONS))
    raise ValueError(f"Unknown distribution {distribution!r}. Choose from: {choices}.")
  rng = np.random.default_rng([seed, SPLITS.index(split)])
  return ArraySource(toy2d_lib.DISTRIBUTIONS[distribution](rng, num_points))


def statistics(source: Source, *, max_items: int | None = None) -> dict[str, Any]:
  """Mean and std over all pixels on the scale of [-1, 1]: what to choose sigma_data by.

  Args:
    source: its uint8 images are mapped as x / 127.5 - 1; points count as they are.
    max_items: look at so many elements, evenly spaced; None: at all.

  Returns:
    mean and std (of the population, in float64), num (elements looked at), shape, num_classes.
  """
  chosen = spread(len(source), max_items)
  count, total, squares = 0, 0.0, 0.0
  for start in range(0, len(chosen), 1024):
    image = source.take(chosen[start : start + 1024])["image"]
    x = scaled(image)
    count, total, squares = count + x.size, total + x.sum(), squares + np.square(x).sum()
  mean = total / count
  std = np.sqrt(squares / count - mean**2)
  return dict(
    mean=float(mean),
    std=float(std),
    num=len(chosen),
    shape=source.shape,
    num_classes=source.num_classes,
  )


def scaled(images: np.ndarray) -> np.ndarray:
  """Elements as float64: uint8 images as x / 127.5 - 1, points as they are."""
  return images / 127.5 - 1.0 if images.dtype == np.uint8 else images.astype(np.float64)


def as_array(source: Source, *, limit: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
  """All images of a source [n, ...] as they are stored, and labels [n] or None.

  With a limit, so many elements, evenly spaced: folders are sorted by class.
  """
  elements = source.take(spread(len(source), limit))
  return elements["image"], elements.get("label")


def spread(num: int, limit: int | None) -> np.ndarray:
  """`limit` indices evenly spaced below num, or all of them; both must be positive."""
  if num == 0:
    raise ValueError("The data source is empty. Give one with at least one element.")
  if limit is not None and limit < 1:
    raise ValueError(f"Asked for {limit} elements: use at least 1, or None for all {num}.")
  limit = num if limit is None else min(limit, num)
  return np.arange(limit) * num // limit


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"Unknown split {split!r}. Choose from: {', '.join(SPLITS)}.")
