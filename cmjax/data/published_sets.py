"""Data sets that are downloaded from where they were published, and read without TensorFlow.

| name | its files | from |
|---|---|---|
| cifar10 | cifar-10-binary.tar.gz, 170 MB | www.cs.toronto.edu/~kriz/cifar.html |
| fashion_mnist | four .idx.gz, 31 MB | github.com/zalandoresearch/fashion-mnist |
| mnist | four .idx.gz, 12 MB | yann.lecun.com/exdb/mnist |

The sha256 of each file are those of tfds 4.9.10. Files are data: nothing in them is executed.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cmjax.base import tar_files
from cmjax.base.ranges import Place
from cmjax.data import downloads, idx_files
from cmjax.data.downloads import File
from cmjax.data.sources import SPLITS, ArraySource, Source

CACHE = "~/.cache/cmjax/datasets"

_CIFAR10 = "https://www.cs.toronto.edu/~kriz/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_MNIST_AGAIN = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def _file(name: str, num_bytes: int, sha256: str, *folders: str) -> File:
  return File(name, tuple(folder + name for folder in folders), num_bytes, sha256)


# set -> its files; of MNIST and its kin the images and the labels of both splits.
FILES = {
  "cifar10": (
    _file(
      "cifar-10-binary.tar.gz", 170_052_171,
      "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", _CIFAR10,
    ),
  ),
  "fashion_mnist": (
    _file(
      "train-images-idx3-ubyte.gz", 26_421_880,
      "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", _FASHION,
    ),
    _file(
      "train-labels-idx1-ubyte.gz", 29_515,
      "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", _FASHION,
    ),
    _file(
      "t10k-images-idx3-ubyte.gz", 4_422_102,
      "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", _FASHION,
    ),
    _file(
      "t10k-labels-idx1-ubyte.gz", 5_148,
      "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", _FASHION,
    ),
  ),
  "mnist": (
    _file(
      "train-images-idx3-ubyte.gz", 9_912_422,
      "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", _MNIST, _MNIST_AGAIN,
    ),
    _file(
      "train-labels-idx1-ubyte.gz", 28_881,
      "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", _MNIST, _MNIST_AGAIN,
    ),
    _file(
      "t10k-images-idx3-ubyte.gz", 1_648_877,
      "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", _MNIST, _MNIST_AGAIN,
    ),
    _file(
      "t10k-labels-idx1-ubyte.gz", 4_542,
      "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", _MNIST, _MNIST_AGAIN,
    ),
  ),
}  # fmt: skip
CLASSES = {
  "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
  "fashion_mnist": ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt",
                    "sneaker", "bag", "ankle boot"],
  "mnist": [str(digit) for digit in range(10)],
}  # fmt: skip
_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue planes


def cifar10(*, split: str = "train", cache: Place = CACHE, url: str | None = None) -> Source:
  """CIFAR-10: 50,000 images for training and 10,000 for the test, uint8 [32, 32, 3], 10 classes.

  Krizhevsky's binary archive is downloaded at the first use.

  Args:
    split: "train" or "test".
    cache: where downloads are kept.
    url: a folder of the web to take the files from, instead of the published one.

  Raises:
    ValueError: it cannot be downloaded, or is damaged.
  """
  (archive,) = _fetch("cifar10", split, cache, url)
  return _source("cifar10", *_read_cifar10(archive, split))


def fashion_mnist(*, split: str = "train", cache: Place = CACHE, url: str | None = None) -> Source:
  """Fashion-MNIST: 60,000 and 10,000 images, uint8 [28, 28, 1], 10 classes; see `cifar10`."""
  return _read_idx("fashion_mnist", split, cache, url)


def mnist(*, split: str = "train", cache: Place = CACHE, url: str | None = None) -> Source:
  """MNIST: 60,000 and 10,000 images, uint8 [28, 28, 1], 10 classes; see `cifar10`."""
  return _read_idx("mnist", split, cache, url)


SOURCES: dict[str, Callable[..., Source]] = {
  "cifar10": cifar10,
  "fashion_mnist": fashion_mnist,
  "mnist": mnist,
}


def _fetch(name: str, split: str, cache: str | os.PathLike[str], url: str | None) -> list[Path]:
  """The files of a set that hold a split, on this disk."""
  if split not in SPLITS:
    raise ValueError(f"Unknown split {split!r}. Choose from: {', '.join(SPLITS)}.")
  files = FILES[name]
  if len(files) > 1:
    files = files[:2] if split == "train" else files[2:]
  if url is not None:
    if not url.startswith(("http://", "https://")):
      raise ValueError(f"data.{name}.url={url!r} must begin with http:// or https://.")
    files = [file._replace(urls=(f"{url.rstrip('/')}/{file.name}",)) for file in files]
  folder = f"{os.fspath(cache)}/{name}"
  return [downloads.fetch(file, folder, key=f"data.{name}.cache") for file in files]


def _read_cifar10(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, 32, 32, 3] and labels [n] of a split."""
  names = [f"cifar-10-batches-bin/{name}" for name in _BATCHES[split]]
  try:
    found = tar_files.read(archive, names)
  except ValueError as error:
    raise ValueError(f"Cannot read {archive}: {error}. Remove it, and start again.") from error
  for name in names:
    if not found[name] or len(found[name]) % _RECORD:
      raise ValueError(
        f"Cannot read {archive}: {name} has {len(found[name])} bytes, not a number of records of "
        f"{_RECORD}. Remove it, and start again."
      )
  records = np.concatenate([np.frombuffer(found[name], np.uint8) for name in names])
  records = records.reshape(-1, _RECORD)
  images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images), records[:, 0]


def _read_idx(name: str, split: str, cache: Place, url: str | None) -> Source:
  images, labels = map(idx_files.read, _fetch(name, split, cache, url))
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise ValueError(
      f"{name} has images {list(images.shape)} and labels {list(labels.shape)}: files of two sets?"
    )
  return _source(name, images[..., None], labels)


def _source(name: str, images: np.ndarray, labels: np.ndarray) -> Source:
  classes = CLASSES[name]
  if len(labels) and labels.max() >= len(classes):
    raise ValueError(f"{name} has the label {labels.max()}, but {len(classes)} classes.")
  return ArraySource(images, labels, len(classes), classes)
