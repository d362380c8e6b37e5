"""A small classifier of your own data as the detector of a Frechet distance.

Pretrained features are made for photos of 200 pixels and more. For digits and other small images
this trains, in seconds to minutes, a network that tells their classes apart, and takes the values
before its last layer as features: a Frechet distance in them counts what matters to the classes,
where pixels count every shade alike.

The features have unit variance on average over the training images, so that with d of them the
distance of a set whose features are all at the training mean is d. Distances of different
classifiers, another seed's among them, are not comparable: keep the file.

Plain functions on a dict of arrays, not an NNX module: metrics cannot know networks, and this way
a file alone is enough to score with.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax.base import paths
from cmjax.base.atomic_files import replacing
from cmjax.base.npz import opened
from cmjax.types import Array

WIDTHS = (32, 64, 64)  # of the convolutions
NUM_FEATURES = 64
BATCH_SIZE = 64  # of training
CHUNK = 500  # images at a time when only looking
_CONVS = ("conv0", "conv1", "conv2")
_LAYERS = (*_CONVS, "hidden", "out")
ARRAYS = tuple(f"{layer}_{part}" for layer in _LAYERS for part in ("kernel", "bias"))

Weights = Mapping[str, Array | np.ndarray]


class Classifier(NamedTuple):
  """A trained classifier: what is in its file."""

  weights: dict[str, np.ndarray]
  shape: tuple[int, int, int]  # of the images it was trained on
  scale: float  # features are divided by it
  accuracy: float  # on the held-out images, in [0, 1]
  seed: int


def strides(size: int) -> tuple[int, int, int]:
  """Of the three convolutions: images of up to 16 pixels are shrunk by 2, larger ones by 4.

  >>> strides(8), strides(28)
  ((1, 2, 1), (2, 2, 1))
  """
  return (2 if size > 16 else 1, 2, 1)


def init(key: Array, shape: tuple[int, int, int], num_classes: int) -> dict[str, Array]:
  """Random weights for images of this shape [h, w, c]: He et al. (2015) normal, zero biases."""
  size, widths = shape[:2], (shape[2], *WIDTHS)
  for stride in strides(max(shape[:2])):
    size = [-(-side // stride) for side in size]
  kernels = {name: (3, 3, *widths[i : i + 2]) for i, name in enumerate(_CONVS)}
  kernels |= {"hidden": (math.prod(size) * widths[-1], NUM_FEATURES)}
  kernels |= {"out": (NUM_FEATURES, num_classes)}
  weights = {}
  for key_layer, (name, dims) in zip(
    jax.random.split(key, len(kernels)), kernels.items(), strict=True
  ):
    std = math.sqrt(2 / math.prod(dims[:-1]))
    weights[f"{name}_kernel"] = std * jax.random.normal(key_layer, dims)
    weights[f"{name}_bias"] = jnp.zeros(dims[-1])
  return weights


def hidden(weights: Weights, images: Array | np.ndarray) -> Array:
  """The values before the last layer, [n, 64], of images [n, h, w, c] in [-1, 1]."""
  x = jnp.asarray(images)
  for name, stride in zip(_CONVS, strides(max(images.shape[1:3])), strict=True):
    x = jax.lax.conv_general_dilated(
      x, jnp.asarray(weights[f"{name}_kernel"]), (stride, stride), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    x = jax.nn.silu(x + weights[f"{name}_bias"][None, None, None])
  x = x.reshape(len(x), -1) @ weights["hidden_kernel"]
  return jax.nn.silu(x + weights["hidden_bias"][None])


def logits(weights: Weights, images: Array | np.ndarray) -> Array:
  """[n, classes] of images [n, h, w, c] in [-1, 1]."""
  return hidden(weights, images) @ weights["out_kernel"] + weights["out_bias"][None]


def train(
  images: np.ndarray,
  labels: np.ndarray | None,
  held_out: tuple[np.ndarray, np.ndarray | None],
  *,
  seed: int = 0,
  num_steps: int | None = None,
) -> Classifier:
  """Trains a classifier; the same arguments give the same weights, on one machine.

  Adam with weight decay and a cosine schedule on the cross-entropy with smoothed labels. Each batch
  is shifted by a pixel or so: features that have learned the training images by heart
  would hold them for unlike the held-out ones.

  Args:
    images: uint8 [n, h, w, c], what the generative model is trained on too.
    labels: integers [n] from 0 up.
    held_out: images and labels not trained on, for the accuracy alone.
    seed: of the weights, the order and the shifts.
    num_steps: of 64 images each; by default 4 epochs, but at least 800.

  Raises:
    ValueError: the shapes, dtypes or labels are not those above.
  """
  labels = _check(images, labels, "the training images")
  truth = _check(*held_out, "the held-out images")
  if num_steps is None:
    num_steps = max(800, 4 * len(images) // BATCH_SIZE)
  shape = tuple(images.shape[1:])
  num_classes = int(labels.max()) + 1
  tx = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=1e-2)
  key = jax.random.key(seed)
  weights = jax.jit(lambda key: init(key, shape, num_classes))(key)
  state = tx.init(weights)
  step = jax.jit(_make_step(tx, num_classes, max(1, max(shape[:2]) // 28)), donate_argnums=(0, 1))
  rng = np.random.default_rng(seed)
  order = np.concatenate(
    [rng.permutation(len(images)) for _ in range(-(-num_steps * BATCH_SIZE // len(images)))]
  )
  for i in range(num_steps):
    chosen = order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]
    batch = images[chosen], labels[chosen].astype(np.int32)
    weights, state = step(weights, state, *batch, jax.random.fold_in(key, i))
  weights = {name: np.asarray(value) for name, value in weights.items()}
  every = np.concatenate(list(_chunks(hidden, weights, images)))
  scale = float(np.sqrt(every.var(axis=0, dtype=np.float64).mean()))
  guesses = np.concatenate(list(_chunks(logits, weights, held_out[0]))).argmax(-1)
  return Classifier(weights, shape, scale, float((guesses == truth).mean()), seed)


def _make_step(tx: optax.GradientTransformation, num_classes: int, reach: int):
  """(weights, state, images uint8, labels, key) -> (weights, state)."""

  def loss(weights, images, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), 0.1)
    return optax.softmax_cross_entropy(logits(weights, images), targets).mean()

  def step(weights, state, images, labels, key):
    # One shift for the whole batch: one slice, and over the steps every image sees them all.
    by = jax.random.randint(key, (2,), 0, 2 * reach + 1)
    around = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    padded = jnp.pad(images, around, mode="edge")
    images = jax.lax.dynamic_slice(padded, (0, by[0], by[1], 0), images.shape)
    gradient = jax.grad(loss)(weights, images.astype(jnp.float32) / 127.5 - 1, labels)
    updates, state = tx.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state

  return step


_jitted = {function: jax.jit(function) for function in (hidden, logits)}


def _chunks(function: Callable[..., Array], weights: Weights, images: np.ndarray):
  """function(weights, images), a chunk at a time, each compiled for the same shape."""
  for start in range(0, len(images), CHUNK):
    part = images[start : start + CHUNK]
    if part.dtype == np.uint8:
      part = part.astype(np.float32) / 127.5 - 1
    full = np.zeros((CHUNK, *part.shape[1:]), np.float32)
    full[: len(part)] = part
    yield np.asarray(_jitted[function](weights, full))[: len(part)]


def save(path: str | os.PathLike[str], classifier: Classifier) -> None:
  """Writes an .npz of plain arrays; a file that is there is replaced whole or not at all."""
  path = paths.local(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file:
    np.savez(file, **classifier.weights, **{k: classifier._asdict()[k] for k in _FACTS})


_FACTS = ("shape", "scale", "accuracy", "seed")


def load(path: str | os.PathLike[str]) -> Classifier:
  """What `save` wrote.

  Raises:
    ValueError: there is no such file, or it is not a classifier of `save`.
  """
  path = paths.local(path)
  advice = "Train one: cmjax.metrics.classifier.train, then save (docs/guides/scores.md)."
  if not path.is_file():
    raise ValueError(f"No classifier at {path}. {advice}")
  try:
    with opened(path) as file:
      if missing := [name for name in (*ARRAYS, *_FACTS) if name not in file]:
        raise ValueError(f"it has no {', '.join(missing[:3])}")
      weights = {name: file[name] for name in ARRAYS}
      facts: dict[str, Any] = {name: file[name].tolist() for name in _FACTS}
      facts["shape"] = tuple(facts["shape"])
  except ValueError as error:
    raise ValueError(f"{path} is no classifier: {error}. {advice}") from error
  return Classifier(weights, **facts)


def features(path: str | os.PathLike[str]) -> Callable[[np.ndarray], np.ndarray]:
  """The features of the classifier in a file: images [n, h, w, c] in [-1, 1] -> float64 [n, 64].

  Raises:
    ValueError: as `load`; when called, for images of another shape than it was trained on.
  """
  classifier = load(path)

  def of(images):
    if tuple(images.shape[1:]) != classifier.shape:
      raise ValueError(
        f"The classifier in {path} is for images of the shape {list(classifier.shape)}, got "
        f"{list(images.shape[1:])}. Train one on this data set."
      )
    rows = list(_chunks(hidden, classifier.weights, np.asarray(images)))
    return np.concatenate(rows).astype(np.float64) / classifier.scale

  return of


def _check(images: np.ndarray, labels: np.ndarray | None, what: str) -> np.ndarray:
  """The labels, or a ValueError for arrays that `train` cannot take."""
  if labels is None:
    raise ValueError(f"A classifier needs labels; {what} have none. Use pixels as features.")
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise ValueError(
      f"{what} must be uint8 [n, h, w, c], got {images.dtype} {list(images.shape)}. "
      "Take them from sources.as_array."
    )
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
    raise ValueError(
      f"The labels of {what} must be integers [{len(images)}] from 0 up, got {labels.dtype} "
      f"{list(labels.shape)}."
    )
  return labels
