"""Evaluators: generators of (name, value).

The train loop knows nothing of metrics, and metrics know nothing of writers.

An evaluator is called with the averages, `{ema name: params of the network}`, and a key, and yields
scalars and arrays of samples. The key is the same at every evaluation: pictures and scores at
different steps differ by the parameters alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cmjax.metrics import frechet, wasserstein
from cmjax.types import Array, Params

Evaluator = Callable[[Mapping[str, Params], Array], Iterator[tuple[str, Any]]]
# params, key, n -> n samples [n, *d] on the host.
Sampler = Callable[[Params, Array, int], np.ndarray]
# images [n, h, w, c] in [-1, 1] -> features [n, d]
Features = Callable[[np.ndarray], np.ndarray]


def pixels(images: np.ndarray) -> np.ndarray:
  """Images in [-1, 1] as their own features, in [0, 1]: exact, and enough for small images."""
  return (images.reshape(len(images), -1).astype(np.float64) + 1) / 2


def _draw(sampler: Sampler, params: Params, key: Array, num: int, batch_size: int):
  """Batches of samples, `num` in all."""
  for i in range(-(-num // batch_size)):
    # Whole batches always, so that the sampler is compiled for one shape.
    batch = sampler(params, jax.random.fold_in(key, i), batch_size)
    yield batch[: num - i * batch_size]


def samples(
  samplers: Mapping[str, Sampler], *, emas: Sequence[str], num_samples: int = 64
) -> Evaluator:
  """Pictures: `num_samples` of each sampler and average, from the same noise at every call."""

  def evaluate(averages, key):
    for ema in emas:
      for name, sampler in samplers.items():
        drawn = sampler(averages[ema], key, num_samples)
        # Images are pixels here; what a diverging model puts beyond them is not to be drawn.
        yield f"{name}_{ema}", np.clip(drawn, -1, 1) if drawn.ndim == 4 else drawn

  return evaluate


def frechet_distance(
  samplers: Mapping[str, Sampler],
  features: Features,
  train: frechet.Moments,
  held_out: frechet.Moments,
  *,
  emas: Sequence[str],
  num_samples: int,
  batch_size: int,
) -> Evaluator:
  """Frechet distance of `num_samples` samples to all training images, in any features.

  Yields `{sampler}/{ema}` for each, and `floor`: the distance of the held-out images to the
  training images, which has the bias of *their* number.

  Args:
    samplers: by name.
    features: images [n, h, w, c] in [-1, 1] -> [n, d].
    train: of the features of the reference.
    held_out: of the features of images not trained on.
    emas: which averages to score.
    num_samples: how many samples.
    batch_size: how many at a time.
  """
  floor = frechet.distance(held_out, train)

  def evaluate(averages, key):
    yield "floor", floor
    for name, sampler in samplers.items():
      for ema in emas:
        draws = _draw(sampler, averages[ema], key, num_samples, batch_size)
        yield f"{name}/{ema}", frechet.distance(frechet.streaming(map(features, draws)), train)

  return evaluate


def sliced_wasserstein(
  samplers: Mapping[str, Sampler],
  train: np.ndarray,
  held_out: np.ndarray,
  *,
  emas: Sequence[str],
  num_samples: int,
  batch_size: int,
) -> Evaluator:
  """Sliced Wasserstein-2 distance of points; `floor` is that of two real draws of the same size."""
  reference, other = train[:num_samples], held_out[:num_samples]
  floor = wasserstein.sliced(other, reference)

  def evaluate(averages, key):
    yield "floor", floor
    for name, sampler in samplers.items():
      for ema in emas:
        draws = _draw(sampler, averages[ema], key, num_samples, batch_size)
        points = np.concatenate(list(draws))
        yield f"{name}/{ema}", wasserstein.sliced(points, reference)

  return evaluate


def throughput(
  samplers: Mapping[str, Sampler], *, emas: Sequence[str], batch_size: int, num_batches: int = 3
) -> Evaluator:
  """Images per second of each sampler: the median over batches, after one that may compile."""

  def evaluate(averages, key):
    for name, sampler in samplers.items():
      seconds = []
      for _ in range(num_batches + 1):
        start = time.perf_counter()
        sampler(averages[emas[0]], key, batch_size)
        seconds.append(time.perf_counter() - start)
      yield name, batch_size / float(np.median(seconds[1:]))

  return evaluate
