"""Evaluators of a config: what is drawn, what looks at it, what it is compared with."""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax.base import sharding
from cmjax.convert import files
from cmjax.data import sources
from cmjax.experiment.decoding import Decoder, decoder, decoder_file
from cmjax.experiment.models import source
from cmjax.experiment.sampling import parts, sampler, sampler_nfe, timed_sampler
from cmjax.experiment.sections import Section, call, latent_convention, pick, read, sample_shape
from cmjax.metrics import classifier, detectors, frechet, references, rounding, scoring
from cmjax.metrics import evaluators as metrics
from cmjax.metrics.detectors import Detector, Outputs
from cmjax.metrics.features import Features, ImageBatch, Reference, collect
from cmjax.metrics.progress import Progress
from cmjax.types import Array, Model, Network, Params

logger = logging.getLogger("cmjax")

FEATURES = ("pixels", "classifier", *detectors.DETECTORS)
EVALUATORS = ("samples", "frechet", "sliced_wasserstein", "throughput")
CHUNK = 500  # images that are read at a time

# Samples, or images as they are stored -> images as a detector takes them.
ToImages = Callable[[np.ndarray], np.ndarray]


def detector(
  name: str,
  weights: str | None,
  variant: str | None,
  *,
  shape: tuple[int, ...],
  mesh: Mesh,
  what: str,
) -> Detector:
  """What looks at images of a shape: their own pixels, a classifier of ours, a public network.

  Args:
    name: of `FEATURES`.
    weights: the file of the classifier or network.
    variant: of a public network.
    shape: of one image or point.
    mesh: whose devices share the work.
    what: the section of the config, for errors.
  """
  pick(FEATURES, name, f"features ({what}.features)")
  if variant is not None and name not in detectors.DETECTORS:
    raise ValueError(f"{what}.variant={variant!r}: features {name!r} have no variants.")
  if name == "pixels":
    if weights is not None:
      raise ValueError(f"{what}.weights={weights!r}: features 'pixels' have no weights.")
    return Detector(name, "FD-pixels", int(np.prod(shape)), _pixels, {"name": name, "scale": "0-1"})
  if not weights:
    raise ValueError(
      f"{what}: features {name!r} need {what}.weights, the file of "
      f"{'one' if name == 'classifier' else 'them'}. Nothing is downloaded."
    )
  path = Path(weights).expanduser()
  if name != "classifier":
    return detectors.load(name, path, variant=variant, mesh=mesh)
  features, made = classifier.features(path), classifier.load(path)
  record = {"name": name, "weights_sha256": files.digest(path), "accuracy": made.accuracy}
  apply = lambda images: Outputs(features(images), None, None)
  return Detector(name, "FD-classifier", classifier.NUM_FEATURES, apply, record)


def _pixels(images: np.ndarray) -> Outputs:
  """Images as their own features, in [0, 1]: enough for small ones. Points as they are."""
  flat = images.reshape(len(images), -1).astype(np.float64)
  return Outputs(flat / 255 if images.dtype == np.uint8 else (flat + 1) / 2, None, None)


def scorer(config: ConfigDict, label: str, mesh: Mesh) -> tuple[metrics.Scorer, ToImages]:
  """How `config.evals[label]` scores images, and how samples become images for it."""
  *_, kwargs = read(config.evals[label], f"evals.{label}")
  return _scorer(config, f"evals.{label}", kwargs, mesh)


def _scorer(
  config: ConfigDict, what: str, kwargs: dict[str, Any], mesh: Mesh
) -> tuple[metrics.Scorer, ToImages]:
  """As `scorer`; what belongs to it is taken out of `kwargs`."""
  take, opened = kwargs.pop, functools.cache(lambda split: source(config, split))
  scores, per_class = tuple(take("scores", ("frechet",))), take("per_class", False)
  scoring.check_scores(scores)
  options = scoring.Options()
  options = options._replace(**{k: take(k) for k in options._fields if k in kwargs})
  named = take("features", ""), take("weights", None), take("variant", None)
  decoding = decoder(config, mesh)
  shape = decoding.shape if decoding else sample_shape(config)
  looking = detector(*named, shape=shape, mesh=mesh, what=what)
  rule, to_images = _rounding(opened("train"), decoding, take("rounding", None), what)
  judged = _Judged(looking, to_images)
  place, floor = take("reference", "train"), take("floor", True)
  if place == "train":
    scoring.check_numbers(len(opened("train")), scores, options, f"{what}: the training split")
    make = lambda: _data_reference(config, opened("train"), judged, scores, what, per_class)
  else:
    stored = references.read(place, looking.name)
    scoring.check_reference(stored, looking, scores, per_class=per_class)
    make = lambda: scoring.with_rows(stored, looking, scores)
  keep = scoring.needs(scores, per_class=per_class)
  held_out = lambda: judged.seen(opened("test"), keep, f"{what}: held-out images")
  if floor:
    _check_held_out(lambda: opened("test"), scores, options, what)
  made = metrics.Scorer(
    detector=looking,
    scores=scores,
    options=options,
    reference=functools.cache(make),
    held_out=functools.cache(held_out) if floor else None,
    record={
      "score": looking.score,
      "detector": looking.record,
      "rounding": rule,
      "options": options.of(scores),
      **({"decoder": decoding.record} if decoding else {}),
    },
    per_class=per_class,
    everyone=sharding.everyone,
    spread=sharding.spread,
  )
  return made, to_images


def _check_held_out(
  open_test: Callable[[], sources.Source], scores: Collection[str], options: scoring.Options,
  what: str,
) -> None:  # fmt: skip
  try:
    scoring.check_numbers(len(open_test()), scores, options, f"{what}: the held-out split")
  except ValueError as error:
    raise ValueError(
      f"{what}.floor is the score of held-out images, which cannot be had here. {error} Or set "
      f"{what}.floor=False, for numbers without a floor."
    ) from error


class _Judged(NamedTuple):
  """A detector, and how what is drawn or stored becomes images for it."""

  detector: Detector
  to_images: ToImages

  def seen(self, data: sources.Source, keep: Collection[str], what: str) -> Features:
    """What is to be kept of all images of a source."""
    batches = image_batches(data, self.to_images, Progress(what, len(data)))
    return collect(batches, self.detector.apply, keep=keep, everyone=sharding.everyone)


def _rounding(
  data: sources.Source, decoding: Decoder | None, rule: str | None, what: str
) -> tuple[str, ToImages]:
  """The rule by which samples get 8 bits, "none" where the data has not; and it as a function."""
  stored = np.dtype(np.uint8) if decoding else data[0]["image"].dtype
  if stored != np.uint8 and len(data.shape) > 1:
    raise ValueError(
      f"{what} scores images of 8 bits, or points, but the data are {stored} {list(data.shape)}. "
      "Of latents: name the autoencoder that makes images of them, data.records.vae."
    )
  if stored != np.uint8:
    if rule is not None:
      raise ValueError(f"{what}.rounding={rule!r}, but the data are {stored}, not 8 bits: drop it.")
    return "none", lambda samples: samples
  rule = rounding.RULES[0] if rule is None else rule
  pick(rounding.RULES, rule, f"rounding ({what}.rounding)")
  decode = decoding.decode if decoding else lambda x: x
  return rule, lambda x: x if x.dtype == np.uint8 else rounding.to_uint8(decode(x), rule)


def _data_reference(
  config: ConfigDict, data: sources.Source, judged: _Judged, scores: Collection[str], what: str,
  per_class: bool,
) -> Reference:  # fmt: skip
  """The training split as a detector sees it."""
  keep = scoring.reference_needs(scores, per_class=per_class)
  seen = judged.seen(data, keep, f"{what}: training images")
  own = config.data.get(config.data.name, {})
  record = {
    "kind": "cmjax",
    "format": references.FORMAT,
    "detector": judged.detector.record,
    "num": seen.num,
    "digest": seen.digest,
    "data": {"name": config.data.name, "split": "train", **dict(own)},
    "prepared": data.record,
  }
  return Reference(seen, record)


def reference(config: ConfigDict, label: str | None, mesh: Mesh) -> Reference:
  """What the Frechet evaluator `label`, or the first, has of the training split: to be written.

  With the labels only where its per_class asks for them.
  """
  label = _first_frechet(config, "A reference") if label is None else label
  section = {**config.evals[label], "reference": "train", "floor": False}
  only = ConfigDict(config.to_dict())
  only.evals = {label: section}
  return scorer(only, label, mesh)[0].reference()


def image_batches(
  data: sources.Source, to_images: ToImages | None = None, progress: Progress | None = None
) -> Iterator[ImageBatch]:
  """This process's part of all images of a source, as they are stored or by `to_images`."""
  index, count = sharding.process()
  for start in range(0, len(data), CHUNK * count):
    numbers = np.arange(start, min(start + CHUNK * count, len(data)))
    own = numbers[index::count]
    if len(own):
      batch = data.take(own)
      images = batch["image"] if to_images is None else to_images(batch["image"])
      yield own, images, batch.get("label")
    if progress:
      progress.add(len(numbers))


def _points(data: sources.Source) -> np.ndarray:
  """All samples of a source in [-1, 1]."""
  images = data.take(np.arange(len(data)))["image"]
  return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images


def _about(config: ConfigDict, keys: Collection[str], emas: Collection[str]) -> metrics.About:
  """What cards say of samplers, averages and seeds."""
  plain = lambda section: section.to_dict() if isinstance(section, ConfigDict) else dict(section)
  drawn = {
    key: {
      "key": key,
      **plain(config.samplers[key]),
      "times": parts(config, key)[1].tolist(),
      "nfe": sampler_nfe(config, key),
    }
    for key in keys
  }
  averages = {ema: {"key": ema, **plain(config.ema.get(ema, {}))} for ema in emas}
  num_classes = config.net.get("num_classes", 0)
  seeds = {"seed": config.seed, "labels": "in turn" if num_classes else None}
  return metrics.About(drawn, averages, seeds, num_classes)


class Scheduled(NamedTuple):
  """An evaluator, and when it runs in training beside the last step."""

  every_steps: int
  at_start: bool  # at step 0 too
  evaluate: metrics.Evaluator

  def due(self, step: int) -> bool:
    """Whether it runs at this step."""
    return step % self.every_steps == 0 and (step > 0 or self.at_start)


def evaluators(
  config: ConfigDict,
  net: Network,
  mesh: Mesh,
  guides: Mapping[str, Model] | None = None,
  *,
  emas: Collection[str] | None = None,
) -> dict[str, Scheduled]:
  """{name: an evaluator and its schedule} of `config.evals`.

  Grids of samples are drawn at step 0 too, unless their section says `at_start=False`: they are
  cheap, and show that sampling works. Scores are not, unless it says True: the score of a network
  that has learned nothing costs as much as any.

  Args:
    config: of the run.
    net: its network.
    mesh: whose devices share the work.
    guides: the other models, for autoguidance, by the sampler's key.
    emas: the averages that there are; None: those of config.ema.
  """
  guides, known = guides or {}, dict.fromkeys(config.ema if emas is None else emas)
  made = {}
  by_name = functools.cache(lambda key: sampler(config, key, net, mesh, guides.get(key)))
  for label, section in config.evals.items():
    name, every, keys, own_emas, kwargs = read(
      section, f"evals.{label}", "every_steps", "samplers", "emas"
    )
    pick(EVALUATORS, name, f"evaluator (evals.{label}.name)")
    at_start = kwargs.pop("at_start", name == "samples")
    if absent := _absent(config, label, section):
      logger.info("evals.%s is off, since %s is None: name a file to have it.", label, absent)
      continue
    drawn, kwargs = {key: by_name(key) for key in keys}, kwargs | {"emas": own_emas}
    for key in own_emas:
      pick(known, key, f"average (evals.{label}.emas)")
    what = f"evals.{label} ({name})"
    if name == "throughput":
      evaluate = call(metrics.throughput, what, drawn, **kwargs)
    elif name == "samples":
      drawn = {key: _decoded(sample, decoder(config, mesh)) for key, sample in drawn.items()}
      evaluate = call(metrics.samples, what, drawn, sharding.everyone, **kwargs)
    elif name == "frechet":
      evaluate = _image_scores(config, label, drawn, kwargs, mesh)
    else:
      given = (*(_points(source(config, split)) for split in sources.SPLITS), sharding.everyone)
      evaluate = call(metrics.sliced_wasserstein, what, drawn, *given, **kwargs)
    made[label] = Scheduled(every, at_start, evaluate)
  return made


def _absent(config: ConfigDict, label: str, section: Section) -> str | None:
  """The key of the file without which there is nothing to evaluate; pages say None for it."""
  if "weights" in section and section["weights"] is None:
    return f"evals.{label}.weights"
  shows_images = section["name"] == "samples" and latent_convention(config)
  return "data.records.vae" if shows_images and not decoder_file(config) else None


def _decoded(sample: metrics.Sampler, decoding: Decoder | None) -> metrics.Sampler:
  """A sampler whose samples are images."""
  if decoding is None:
    return sample

  def images(params, key, numbers):
    own, drawn = sample(params, key, numbers)
    return own, decoding.decode(drawn)

  return images


def _image_scores(
  config: ConfigDict,
  label: str,
  drawn: Mapping[str, metrics.Sampler],
  kwargs: dict[str, Any],
  mesh: Mesh,
) -> metrics.Evaluator:
  judge, to_images = _scorer(config, f"evals.{label}", kwargs, mesh)
  about = _about(config, drawn, kwargs["emas"])
  if judge.per_class and not about.num_classes:
    raise ValueError(f"evals.{label}.per_class=True needs a network with net.num_classes.")
  what = f"evals.{label} (frechet)"
  if "num_samples" in kwargs:
    scoring.check_numbers(kwargs["num_samples"], judge.scores, judge.options, what)
  return call(metrics.image_scores, what, drawn, judge, about, to_images, **kwargs)


def search_score(
  config: ConfigDict,
  key: str,
  net: Network,
  mesh: Mesh,
  params: Params,
  noise_key: Array,
  num_samples: int,
) -> tuple[int, Callable[[tuple[float, ...]], float]]:
  """How many steps the sampler `config.samplers[key]` has, and the score of intermediate times.

  The score is the Frechet distance of `num_samples` samples, from the same noise each time, in the
  features of the first Frechet evaluator of the config, drawn in batches as large as its.
  """
  num_steps, at = timed_sampler(config, key, net, mesh)
  label = _first_frechet(config, "A search of times")
  if num_samples < 2:
    raise ValueError(f"A search cannot score on {num_samples} samples: take 1,000 or more.")
  judge, to_images = scorer(config, label, mesh)
  reference = judge.reference().features.moments
  assert reference is not None, "a Frechet evaluator's reference has moments"
  batch_size = min(num_samples, config.evals[label].get("batch_size", num_samples))
  metrics.check_counts(batch_size=batch_size)

  def score(times):
    draw = functools.partial(at(times), params, noise_key)
    what = f"{key} at {', '.join(f'{t:.4f}' for t in times)}"
    drawn = metrics.batches(draw, to_images, what, range(num_samples), batch_size)
    found = judge.look(drawn).moments
    assert found is not None, "a Frechet evaluator's features have moments"
    return float(frechet.distance(found, reference))

  return num_steps, score


def frechet_scores(
  config: ConfigDict, net: Network, mesh: Mesh, guides: Mapping[str, Model] | None = None
) -> tuple[str, Callable[[Params, Array], dict[str, float]]]:
  """The first Frechet evaluator of the config, for any parameters: its label, and the scores.

  The scores are (params, key) -> {sampler: distance}, from the same noise for the same key.
  """
  label = _first_frechet(config, "A sweep of averages")
  only = ConfigDict(config.to_dict())
  only.evals = {label: only.evals[label].to_dict() | {"emas": ("posthoc",)}}
  evaluate = evaluators(only, net, mesh, guides, emas=("posthoc",))[label].evaluate

  def scores(params, key):
    values = dict(evaluate({"posthoc": params}, key))
    return {name: float(values[f"{name}/posthoc"]) for name in only.evals[label].samplers}

  return label, scores


def _first_frechet(config: ConfigDict, what: str) -> str:
  label = next((k for k, e in config.evals.items() if e.name == "frechet"), None)
  if label is None:
    raise ValueError(f"{what} needs a 'frechet' evaluator in config.evals: its features.")
  if "frechet" not in config.evals[label].get("scores", ("frechet",)):
    raise ValueError(f"{what} needs 'frechet' among evals.{label}.scores.")
  return label
