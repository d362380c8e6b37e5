"""Where images come from: random-access sources, in memory, in a folder or in a tfds data set.

Element i of a source is {"image": uint8 [h, w, c] or float32 [d], "label": int32}, without a label
where there are no classes. Nothing here shuffles or scales: `pipeline.dataset` does.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from cmjax.base import limits
from cmjax.base.npz import opened
from cmjax.base.ranges import Count, Place, Range, Seed, Share, Where
from cmjax.data import image_files
from cmjax.data import toy2d as toy2d_lib

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
  """Arrays in memory: images uint8 [n, h, w, c] or points float32 [n, d]; labels [n] or none."""

  def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, num_classes: int = 0):
    self.shape, self.num_classes = images.shape[1:], num_classes
    self._arrays = {"image": images}
    if labels is not None:
      self._arrays["label"] = labels.astype(np.int32)

  def __len__(self) -> int:
    return len(self._arrays["image"])

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {name: array[i] for name, array in self._arrays.items()}

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The elements at `indices` [b], by one indexing of each array."""
    return {name: array[indices] for name, array in self._arrays.items()}


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


def npz(path: Place | os.PathLike[str], *, split: str = "train") -> Source:
  """The arrays {split}_images, uint8 [n, h, w, c] or [n, h, w], and {split}_labels of an .npz.

  Labels are optional integers [n]; there are as many classes as the largest label of either
  split needs. The images are held in memory. Pickled objects are refused, not read.

  Raises:
    ValueError: if the file is missing or damaged, or its arrays are not those above.
  """
  _check_split(split)
  arrays = _read_npz(Path(path).expanduser(), f"{split}_images")
  images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise ValueError(
      f"{path}: {split}_images is {images.dtype} {list(images.shape)}, but must be uint8 "
      "[n, h, w, c] or [n, h, w]. Scale to 0..255 and convert before saving."
    )
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
  return ArraySource(images if images.ndim == 4 else images[..., None], labels, num_classes)


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
) -> Source:
  """PNG and JPEG files of one size; in subfolders, each is a class, numbered by sorted name.

  Images are decoded when they are read. Alpha is dropped.

  Args:
    path: the folder. Only files right in it, or else right in its subfolders, are read; names
      that begin with a dot are not.
    split: "train" or "test".
    channels: 3 for RGB, 1 for grayscale; None: 1 if every file is grayscale, else 3.
    held_out: the fraction that is the test split. Of the files i = 0, 1, ... in sorted order, i
      is held out where floor((i + 1) held_out) > floor(i held_out): evenly over the classes.

  Raises:
    ValueError: if there are no images, or sizes differ, or a file's header cannot be read; on
      reading an image, if it cannot be decoded.
  """
  _check_split(split)
  if channels not in (None, 1, 3):
    raise ValueError(f"channels={channels}: use 3 (RGB), 1 (grayscale) or None (as the files are).")
  if not 0.0 <= held_out < 1.0:
    raise ValueError(f"held_out={held_out} must be a fraction from 0 up to, but not, 1.")
  files, labels, num_classes = image_files.find(Path(path).expanduser())
  size, gray = image_files.read_headers(files)
  steps = np.floor(np.arange(len(files) + 1) * held_out)
  chosen = np.flatnonzero((np.diff(steps) > 0) == (split == "test"))
  if not len(chosen):
    raise ValueError(
      f"{path}: no images for split {split!r}: held_out={held_out} of {len(files)} are held out "
      "for the test. Set held_out, such as 0.1, or give the test images a folder of their own."
    )
  return _FolderSource(
    [files[i] for i in chosen],
    [labels[i] for i in chosen] if labels else None,
    (*size, channels or (1 if gray else 3)),
    num_classes,
  )


class _FolderSource(Source):
  """Image files, decoded as they are read."""

  def __init__(
    self,
    files: Sequence[Path],
    labels: Sequence[int] | None,
    shape: tuple[int, ...],
    num_classes: int,
  ):
    self.shape, self.num_classes = shape, num_classes
    self._files, self._labels = files, labels

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    element = {"image": image_files.read_pixels(self._files[i], self.shape)}
    return element if self._labels is None else element | {"label": np.int32(self._labels[i])}


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
  except (NotImplementedError, AssertionError, OSError, ImportError) as error:
    option = f" --data_dir={data_dir}" if data_dir else ""
    raise ValueError(
      f"The tfds data set {dataset!r} is not prepared in {data_dir or 'the default folder of tfds'}"
      " as array_record. Prepare it once, with TensorFlow: pip install 'cmjax[prepare]', then "
      f"tfds build {dataset} --file_format=array_record{option}"
    ) from error
  except (ValueError, KeyError) as error:
    raise ValueError(f"tfds cannot read split {split!r} of {dataset!r}: {error}") from error


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
  chosen = _spread(len(source), max_items)
  count, total, squares = 0, 0.0, 0.0
  for start in range(0, len(chosen), 1024):
    image = source.take(chosen[start : start + 1024])["image"]
    x = image / 127.5 - 1.0 if image.dtype == np.uint8 else image.astype(np.float64)
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


def as_array(source: Source, *, limit: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
  """All images of a source [n, ...] as they are stored, and labels [n] or None.

  With a limit, so many elements, evenly spaced: folders are sorted by class.
  """
  elements = source.take(_spread(len(source), limit))
  return elements["image"], elements.get("label")


def _spread(num: int, limit: int | None) -> np.ndarray:
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
