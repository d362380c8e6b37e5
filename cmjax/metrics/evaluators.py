"""Evaluators: generators of (name, value).

The train loop knows nothing of metrics, and metrics know nothing of writers.

An evaluator is called with the averages, `{ema name: params of the network}`, and a key, and yields
scalars, arrays of samples, and cards (dicts, see `cards`). The key is the same at every evaluation:
pictures and scores at different steps differ by the parameters alone.

Sample i is a function of the key and of i, in whatever batch and on whatever process it is drawn.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cmjax.base.ranges import Count
from cmjax.metrics import scoring, wasserstein
from cmjax.metrics.detectors import Detector
from cmjax.metrics.features import Everyone, Features, ImageBatch, Reference, alone, collect
from cmjax.metrics.neighbours import Spread, here
from cmjax.metrics.progress import Progress
from cmjax.types import Array, Params

Evaluator = Callable[[Mapping[str, Params], Array], Iterator[tuple[str, Any]]]
# params, key, numbers of samples [n] -> of this process's share: numbers [m] and samples [m, *d].
Sampler = Callable[[Params, Array, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Scorer(NamedTuple):
  """How sets of images are scored.

  Attributes:
    detector: what looks at them.
    scores: names of `scoring.SCORES`.
    options: of the scores.
    reference: -> what they are compared with; made when it is first asked for.
    held_out: -> images in the samples' place, for the floor; None without.
    floor_reference: -> what these are compared with; None: the reference.
    record: what a card says of all this, beside the reference: score, detector, rounding, options.
    per_class: whether cards have the values of each class, too.
    everyone: gathers arrays from all processes.
    spread: splits rows of work over all processes.
  """

  detector: Detector
  scores: tuple[str, ...]
  options: scoring.Options
  reference: Callable[[], Reference]
  held_out: Callable[[], Features] | None
  record: Mapping[str, Any]
  per_class: bool = False
  everyone: Everyone = alone
  spread: Spread = here
  floor_reference: Callable[[], Reference] | None = None

  def look(self, batches: Iterator[ImageBatch]) -> Features:
    """What the scores need of images."""
    keep = scoring.needs(self.scores, per_class=self.per_class)
    looking = self.detector
    return collect(batches, looking.apply, keep=keep, everyone=self.everyone, rows=looking.rows)

  def values(self, seen: Features) -> dict[str, float]:
    """The scores of images."""
    return scoring.values(seen, self.reference(), self.scores, self.options, spread=self.spread)

  def floor(self) -> tuple[dict[str, float], int]:
    """The scores of held-out images in the samples' place, and their number; without: {}, 0."""
    if self.held_out is None:
      return {}, 0
    seen, reference = self.held_out(), (self.floor_reference or self.reference)()
    values = scoring.values(seen, reference, self.scores, self.options, spread=self.spread)
    return values, seen.num

  def card(self, seen: Features) -> dict[str, Any]:
    """Values of images, by class too where asked for, and how they were made."""
    reference, card = self.reference(), {"values": self.values(seen), **self.record}
    card["reference"] = reference.record
    card["images"] = {"num": seen.num, "digest": seen.digest}
    if self.per_class:
      card["classes"] = scoring.class_values(seen, reference, self.scores, self.options)
    if warnings := scoring.warnings(seen.num, reference, self.scores):
      card["warnings"] = warnings
      for warning in warnings:
        scoring.logger.warning("%s", warning)
    return card


class About(NamedTuple):
  """What cards say of what is drawn.

  Attributes:
    samplers: of each, by its key: name, times, NFE, guidance.
    emas: of each average, by its key: its length.
    seeds: of the noise and the classes.
    num_classes: classes are the numbers of the samples in turn; 0 without classes.
  """

  samplers: Mapping[str, Mapping[str, Any]]
  emas: Mapping[str, Mapping[str, Any]]
  seeds: Mapping[str, Any]
  num_classes: int = 0


def whole(
  sampler: Sampler,
  params: Params,
  key: Array,
  num: int,
  everyone: Everyone = alone,
  *,
  batch_size: int | None = None,
  progress: Progress | None = None,
) -> np.ndarray:
  """Samples 0 to num - 1, [num, *d], in order, on every process.

  Args:
    sampler: what draws.
    params: of the network.
    key: of the noise.
    num: how many.
    everyone: gathers arrays from all processes.
    batch_size: how many are drawn at a time; the last batch is drawn whole, so that all are of one
      program, and cut. None: all at once.
    progress: is told of each batch.
  """
  size, drawn = batch_size or num, []
  for start in range(0, num, size):
    drawn.append(sampler(params, key, np.arange(start, start + size)))
    if progress:
      progress.add(min(size, num - start))
  own = (np.concatenate(part) for part in zip(*drawn, strict=True))
  ids, found = (np.concatenate(everyone(part)) for part in own)
  return found[np.argsort(ids)][:num]


def samples(
  samplers: Mapping[str, Sampler],
  everyone: Everyone = alone,
  *,
  emas: Sequence[str],
  num_samples: Count = 64,
) -> Evaluator:
  """Pictures: `num_samples` of each sampler and average, from the same noise at every call."""

  def evaluate(averages, key):
    for ema in emas:
      for name, sampler in samplers.items():
        drawn = whole(sampler, averages[ema], key, num_samples, everyone)
        # Images are pixels here; what a diverging model puts beyond them is not to be drawn.
        yield f"{name}_{ema}", np.clip(drawn, -1, 1) if drawn.ndim == 4 else drawn

  return evaluate


def check_counts(**counts: int) -> None:
  """Raises a ValueError for a number of samples, batches or sets that is below 1."""
  for what, count in counts.items():
    if count < 1:
      raise ValueError(f"{what}={count} must be at least 1.")


def batches(
  draw: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
  to_images: Callable[[np.ndarray], np.ndarray],
  what: str,
  numbers: range,
  batch_size: int,
  num_classes: int = 0,
) -> Iterator[ImageBatch]:
  """Samples as a `Scorer` looks at them, drawn as they are asked for.

  Args:
    draw: numbers -> those of them that this process has, and their samples.
    to_images: samples -> images as the detector takes them.
    what: is scored, for the lines of progress.
    numbers: of the samples.
    batch_size: how many at a time, on all devices together.
    num_classes: classes are the numbers in turn; 0 without classes.
  """
  progress = Progress(f"Scoring {what}", len(numbers))
  for start in range(numbers.start, numbers.stop, batch_size):
    # Whole batches always, so that the sampler is compiled for one shape.
    ids, drawn = draw(np.arange(start, start + batch_size))
    wanted = ids < numbers.stop
    ids, drawn = ids[wanted], drawn[wanted]
    yield ids, to_images(drawn), ids % num_classes if num_classes else None
    progress.add(min(batch_size, numbers.stop - start))


def image_scores(
  samplers: Mapping[str, Sampler],
  scorer: Scorer,
  about: About,
  to_images: Callable[[np.ndarray], np.ndarray],
  *,
  emas: Sequence[str],
  num_samples: Count,
  batch_size: Count,
  best_of: Count = 1,
) -> Evaluator:
  """Scores of `num_samples` samples of each sampler and average, in any detector's features.

  Yields `{sampler}/{ema}` for the Frechet distance and `{sampler}/{ema}/{value}` for any other, a
  card for each, and first `floor` and `floor/{value}`: what held-out images have in the samples'
  place, with the bias of *their* number.

  With `best_of` 3 there are three sets of samples, of the numbers 0 to num_samples - 1 and on, and
  each value is the best of the three, as in EDM and after; the card has all.

  Args:
    samplers: by name.
    scorer: what scores them.
    about: what cards say of what is drawn.
    to_images: samples -> images as the detector takes them.
    emas: which averages to score.
    num_samples: how many samples.
    batch_size: how many at a time, on all devices together.
    best_of: sets of samples.

  Raises:
    ValueError: a number is below 1.
  """
  check_counts(num_samples=num_samples, batch_size=batch_size, best_of=best_of)
  num_classes = about.num_classes

  floor = functools.cache(scorer.floor)

  def evaluate(averages, key):
    values, num = floor()
    yield from _scalars("floor", values)
    for name, sampler in samplers.items():
      for ema in emas:
        made = []
        for first in range(0, best_of * num_samples, num_samples):
          draw = functools.partial(sampler, averages[ema], key)
          numbers = range(first, first + num_samples)
          drawn = batches(draw, to_images, f"{name} ({ema})", numbers, batch_size, num_classes)
          made.append(scorer.card(scorer.look(drawn)))
          made[-1]["images"] |= {"kind": "samples", "first": first, **about.seeds}
        card = {**made[0], "values": _best([one["values"] for one in made])}
        card |= {"sampler": about.samplers[name], "ema": about.emas[ema]}
        card |= {"floor": values, "floor_num": num} if values else {}
        if best_of > 1:
          # What belongs to one of the sets alone is there with it.
          images = {key: value for key, value in card["images"].items() if key != "digest"}
          card |= {"best_of": best_of, "images": images, "repetitions": made}
          card.pop("classes", None)
        yield from _scalars(f"{name}/{ema}", card["values"])
        yield f"{name}_{ema}", card

  return evaluate


def image_card(scorer: Scorer, batches: Iterator[ImageBatch]) -> dict[str, Any]:
  """The card of images that are there already."""
  card = scorer.card(scorer.look(batches))
  values, num = scorer.floor()
  return card | ({"floor": values, "floor_num": num} if values else {})


def _best(repetitions: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The best of each value; what belongs beside a value is that of its repetition."""
  found = {}
  for name in repetitions[0]:
    main = next((n for n in repetitions[0] if name in (f"{n}_std", f"{n}_half_width")), name)
    chosen = repetitions[0]
    for other in repetitions[1:]:
      if scoring.better(main, other[main], chosen[main]) != chosen[main]:
        chosen = other
    found[name] = chosen[name]
  return found


def _scalars(prefix: str, values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
  for name, value in values.items():
    if name not in scoring.BESIDE:
      yield prefix if name == "frechet" else f"{prefix}/{name}", value


def sliced_wasserstein(
  samplers: Mapping[str, Sampler],
  train: np.ndarray,
  held_out: np.ndarray,
  everyone: Everyone = alone,
  *,
  emas: Sequence[str],
  num_samples: Count,
  batch_size: Count,
) -> Evaluator:
  """Sliced Wasserstein-2 distance of points, or of images as points: their pixels in [-1, 1].

  `floor` is that of two real draws, of the same size where there are as many.
  """
  flat = lambda x: x.reshape(len(x), -1)
  reference, other = flat(train[:num_samples]), flat(held_out[:num_samples])
  floor = wasserstein.sliced(other, reference)

  def points(sampler, params, key):
    return flat(whole(sampler, params, key, num_samples, everyone, batch_size=batch_size))

  def evaluate(averages, key):
    yield "floor", floor
    for name, sampler in samplers.items():
      for ema in emas:
        yield f"{name}/{ema}", wasserstein.sliced(points(sampler, averages[ema], key), reference)

  return evaluate


def throughput(
  samplers: Mapping[str, Sampler], *, emas: Sequence[str], batch_size: Count, num_batches: Count = 3
) -> Evaluator:
  """Images per second of each sampler: the median over batches, after one that may compile."""

  def evaluate(averages, key):
    for name, sampler in samplers.items():
      seconds = []
      for _ in range(num_batches + 1):
        start = time.perf_counter()
        sampler(averages[emas[0]], key, np.arange(batch_size))
        seconds.append(time.perf_counter() - start)
      yield name, batch_size / float(np.median(seconds[1:]))

  return evaluate
