"""Evaluators of a config: what is drawn, what looks at it, what it is compared with."""

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from cmjax.base import digests, parts, paths, ranges, sharding
from cmjax.base.ranges import Count, Place, PlaceOrNone
from cmjax.convert import files
from cmjax.data import sources
from cmjax.experiment import sampling
from cmjax.experiment.decoding import Decoder, decoder
from cmjax.experiment.fields import Evaluator, Experiment, Kept, Samples, Setting
from cmjax.experiment.models import opened, source_arguments
from cmjax.experiment.sections import Section, arguments, call, pick, pick_part, read
from cmjax.metrics import classifier, detectors, frechet, references, rounding, scoring
from cmjax.metrics import evaluators as metrics
from cmjax.metrics.detectors import Detector, Outputs
from cmjax.metrics.features import Features, ImageBatch, Reference, collect
from cmjax.metrics.progress import Progress
from cmjax.types import Array, Model, Params

logger = logging.getLogger("cmjax")

FEATURES = ("pixels", "classifier", *detectors.DETECTORS)
CHUNK = 500  # images that are read at a time
NUM_REAL, NUM_REAL_POINTS = 64, 4_096  # training samples of a picture
MOST_KEPT = 2**30  # bytes of a reference that a run keeps

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
  if factory := _check_features(name, what):
    return _users_detector(factory, name, weights, variant, shape=shape, mesh=mesh, what=what)
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
  path = paths.local(weights)
  if name != "classifier":
    return detectors.load(name, path, variant=variant, mesh=mesh)
  features, made = classifier.features(path), classifier.load(path)
  record = {"name": name, "weights_sha256": files.digest(path), "accuracy": made.accuracy}
  apply = lambda images: Outputs(features(images), None, None)
  return Detector(name, "FD-classifier", classifier.NUM_FEATURES, apply, record)


def _check_features(name: str, what: str) -> Callable[..., Any] | None:
  """The user's own factory of a detector, of that name; None for one of `FEATURES`."""
  what = f"features ({what}.features)"
  if name not in FEATURES and parts.is_outside(name):
    return parts.named(name, what)
  pick(FEATURES, name, what)
  return None


def _users_detector(
  factory: Callable[..., Any], name: str, weights: str | None, variant: str | None, *,
  shape: tuple[int, ...], mesh: Mesh, what: str,
) -> Detector:  # fmt: skip
  """A detector of the user's own: a marked factory that takes what it wants of these."""
  given = dict(weights=weights, variant=variant, shape=shape, mesh=mesh)
  wanted = [p.name for p in arguments(factory)]
  made = factory(**{key: value for key, value in given.items() if key in wanted})
  if not isinstance(made, Detector):
    raise ValueError(f"{what}.features={name!r} gave a {type(made).__name__}, not a Detector.")
  return made


def _pixels(images: np.ndarray) -> Outputs:
  """Images as their own features, in [0, 1]: enough for small ones. Points as they are."""
  flat = images.reshape(len(images), -1).astype(np.float64)
  return Outputs(flat / 255 if images.dtype == np.uint8 else (flat + 1) / 2, None, None)


def _scorer(
  kwargs: Mapping[str, Any], what: str, setting: Setting
) -> tuple[metrics.Scorer, ToImages]:
  """How a section scores images, and how samples become images for it."""
  kwargs = dict(kwargs)
  take, opened_split, mesh = kwargs.pop, setting.source, setting.mesh
  scores, per_class = tuple(take("scores", ("frechet",))), take("per_class", False)
  options = scoring.Options()
  options = options._replace(**{k: take(k) for k in options._fields if k in kwargs})
  named = take("features", ""), take("weights", None), take("variant", None)
  decoding = decoder(setting.samples, mesh)
  shape = decoding.shape if decoding else setting.samples.shape
  looking = detector(*named, shape=shape, mesh=mesh, what=what)
  rule, to_images = _rounding(opened_split("train"), decoding, take("rounding", None), what)
  judged = _Judged(looking, to_images, setting.ask)
  place, floor = take("reference", "train"), take("floor", True)
  if place == "train":
    scoring.check_numbers(
      len(opened_split("train")), scores, options, f"{what}: the training split"
    )
    make = lambda: _data_reference(setting, judged, scores, what, per_class)
    if setting.kept is not None and looking.name in FEATURES:
      keep_of = scoring.reference_needs(scores, per_class=per_class)
      images = {"rounding": rule, "decoder": decoding.record if decoding else None}
      make = functools.partial(_kept_reference, setting, looking, keep_of, images, make)
  else:
    stored = references.read(place, looking.name)
    scoring.check_reference(stored, looking, scores, per_class=per_class)
    make = lambda: scoring.with_rows(stored, looking, scores)
  keep, floor_of = scoring.needs(scores, per_class=per_class), None
  if floor:
    floor_of = _held_out(opened_split, what)
    _check_held_out(floor_of.images, scores, options, what)
  made = metrics.Scorer(
    detector=looking,
    scores=scores,
    options=options,
    reference=functools.cache(make),
    held_out=None,
    record={
      "score": looking.score,
      "detector": looking.record,
      "rounding": rule,
      "options": options.of(scores),
      **({"decoder": decoding.record} if decoding else {}),
      **({"floor_of": floor_of.words} if floor_of and floor_of.others else {}),
    },
    per_class=per_class,
    everyone=sharding.everyone,
    spread=sharding.spread,
  )
  if floor_of:
    seen = functools.partial(judged.seen, floor_of.images, keep, f"{what}: held-out images")
    made = made._replace(held_out=functools.cache(seen))
    if floor_of.others is not None:
      of_others = functools.partial(
        _data_reference, setting, judged, scores, what, per_class, floor_of.others
      )
      made = made._replace(floor_reference=functools.cache(of_others))
  return made, to_images


class _HeldOut(NamedTuple):
  """Real images in the place of samples.

  Attributes:
    images: they.
    others: real images to compare them with, where the whole training split has them in it.
    words: which images they are.
  """

  images: sources.Source
  others: sources.Source | None
  words: str


SHARE = 10  # one image of so many is held out, where there is no test split


def _held_out(open_split: Callable[[str], sources.Source], what: str) -> _HeldOut:
  """The test split; of data without one every tenth training image, which is told."""
  try:
    return _HeldOut(open_split("test"), None, "the test split")
  except ValueError as error:
    train, reason = open_split("train"), str(error)
  place = np.arange(len(train))
  is_held_out = place % SHARE == SHARE - 1
  images, others = (sources.Part(train, place[chosen]) for chosen in (is_held_out, ~is_held_out))
  words = f"every {SHARE}th training image, against the others"
  logger.info(
    "%s: there is no test split (%s). The floor is the score of %s: the network has seen them.",
    *(what, reason, words),
  )
  return _HeldOut(images, others, words)


def _check_held_out(
  images: sources.Source, scores: Collection[str], options: scoring.Options, what: str
) -> None:
  try:
    scoring.check_numbers(len(images), scores, options, f"{what}: the held-out split")
  except ValueError as error:
    raise ValueError(
      f"{what}.floor is the score of held-out images, which cannot be had here. {error} Or set "
      f"{what}.floor=False, for numbers without a floor."
    ) from error


class _Judged(NamedTuple):
  """A detector, and how what is drawn or stored becomes images for it."""

  detector: Detector
  to_images: ToImages
  ask: Callable[[], None]

  def seen(self, data: sources.Source, keep: Collection[str], what: str) -> Features:
    """What is to be kept of all images of a source."""
    batches = image_batches(data, self.to_images, Progress(what, len(data)), self.ask)
    looking = self.detector
    return collect(batches, looking.apply, keep=keep, everyone=sharding.everyone, rows=looking.rows)


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
  setting: Setting, judged: _Judged, scores: Collection[str], what: str, per_class: bool,
  part: sources.Source | None = None,
) -> Reference:  # fmt: skip
  """The training split, or a part of it, as a detector sees it."""
  keep = scoring.reference_needs(scores, per_class=per_class)
  data = setting.source("train") if part is None else part
  seen = judged.seen(data, keep, f"{what}: training images")
  record = {
    "kind": "cmjax",
    "format": references.FORMAT,
    "detector": judged.detector.record,
    "num": seen.num,
    "digest": seen.digest,
    "data": setting.data,
    "prepared": data.record,
  }
  return Reference(seen, record)


def _kept_reference(
  setting: Setting,
  looking: Detector,
  keep: Collection[str],
  images: Mapping[str, Any],
  make: Callable[[], Reference],
) -> Reference:
  """`_data_reference`, which the run keeps for its later sittings where that is no large file."""
  assert setting.kept is not None, "asked where there is a run"
  num = len(setting.source("train"))
  size = 8 * looking.dim**2 + ("rows" in keep) * 8 * looking.dim * num
  if size > MOST_KEPT:
    return make()
  made_of = {"data": setting.kept.data(), "split": "train", "num": num, "keep": list(keep)}
  made_of |= {"detector": looking.record, "images": dict(images), "config": dict(setting.data)}
  path = setting.kept.folder / "references" / f"{digests.of_json(made_of)[:16]}.npz"
  agree = functools.partial(sharding.all_agree, what="the reference of the training images")
  return references.kept(path, made_of, make, primary=sharding.process()[0] == 0, agree=agree)


def image_batches(
  data: sources.Source,
  to_images: ToImages | None = None,
  progress: Progress | None = None,
  ask: Callable[[], None] = lambda: None,
) -> Iterator[ImageBatch]:
  """This process's part of all images of a source, as they are stored or by `to_images`.

  `ask` is called before each batch, as often on a process that has none of its images.
  """
  index, count = sharding.process()
  for start in range(0, len(data), CHUNK * count):
    ask()
    numbers = np.arange(start, min(start + CHUNK * count, len(data)))
    own = numbers[index::count]
    if len(own):
      batch = data.take(own)
      images = batch["image"] if to_images is None else to_images(batch["image"])
      yield own, images, batch.get("label")
    if progress:
      progress.add(len(numbers))


def _points(data: sources.Source, limit: int | None) -> np.ndarray:
  """Samples of a source in [-1, 1]: all points, or so many images, evenly spaced."""
  images, _ = sources.as_array(data, limit=limit if len(data.shape) > 1 else None)
  return _unit(images)


def _unit(images: np.ndarray) -> np.ndarray:
  """Images of 8 bits in [-1, 1]; all others as they are."""
  return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images


def real_samples(experiment: Experiment, data: sources.Source, mesh: Mesh) -> np.ndarray | None:
  """Some training samples, as pictures show them beside what is drawn.

  Args:
    experiment: whose latents are decoded.
    data: the training split.
    mesh: whose devices decode.

  Returns:
    Images or points in [-1, 1]; None of latents that no autoencoder was named for.
  """
  decoding = decoder(experiment.samples, mesh)
  if experiment.samples.latents and decoding is None:
    return None
  num = NUM_REAL if len(data.shape) > 1 else NUM_REAL_POINTS
  taken = data.take(sources.spread(len(data), num))["image"]
  if decoding and taken.dtype != np.uint8:
    taken = decoding.decode(taken)
  images = _unit(np.asarray(taken))
  return np.clip(images, -1, 1) if images.ndim == 4 else images


# --- the evaluators of a config: each is checked once, when it is parsed, and opened once ---


def _open_samples(kwargs: Mapping[str, Any], what: str, setting: Setting) -> metrics.Evaluator:
  decoding = decoder(setting.samples, setting.mesh)
  drawn = {key: _decoded(sample, decoding) for key, sample in setting.samplers.items()}
  return metrics.samples(drawn, sharding.everyone, emas=setting.emas, **kwargs)


def _open_wasserstein(kwargs: Mapping[str, Any], what: str, setting: Setting) -> metrics.Evaluator:
  floor_of = _held_out(setting.source, what)
  others = setting.source("train") if floor_of.others is None else floor_of.others
  train, held_out = (_points(data, kwargs.get("num_samples")) for data in (others, floor_of.images))
  return metrics.sliced_wasserstein(
    setting.samplers, train, held_out, sharding.everyone, emas=setting.emas, **kwargs
  )


def _open_throughput(kwargs: Mapping[str, Any], what: str, setting: Setting) -> metrics.Evaluator:
  return metrics.throughput(setting.samplers, emas=setting.emas, **kwargs)


def _open_frechet(kwargs: Mapping[str, Any], what: str, setting: Setting) -> metrics.Evaluator:
  mine = {key: value for key, value in kwargs.items() if key in IMAGE_SCORES}
  judge, to_images = _scorer({k: v for k, v in kwargs.items() if k not in mine}, what, setting)
  if judge.per_class and not setting.about.num_classes:
    raise ValueError(f"{what}.per_class=True needs a network with net.num_classes.")
  scoring.check_numbers(mine["num_samples"], judge.scores, judge.options, f"{what} (frechet)")
  return metrics.image_scores(
    setting.samplers, judge, setting.about, to_images, emas=setting.emas, **mine
  )


IMAGE_SCORES = ("num_samples", "batch_size", "best_of")
SCORER: dict[str, Any] = {
  "scores": tuple[str, ...],
  "per_class": bool,
  "features": str,
  "weights": PlaceOrNone,
  "variant": str | None,
  "rounding": str | None,
  "reference": Place,
  "floor": bool,
  **ranges.of(scoring.Options),
}
# What the section of any evaluator may say.
ABOUT_EVALUATOR: dict[str, Any] = {
  "name": str,
  "every_steps": Count,
  "samplers": tuple[str, ...],
  "emas": tuple[str, ...],
  "at_start": bool,
}


class Row(NamedTuple):
  """A kind of evaluator: what opens it, and the function whose arguments a section may have."""

  open: Callable[[Mapping[str, Any], str, Setting], metrics.Evaluator]
  arguments_of: Callable[..., metrics.Evaluator]
  others: Mapping[str, Any] = MappingProxyType({})


EVALUATORS = {
  "samples": Row(_open_samples, metrics.samples),
  "frechet": Row(_open_frechet, metrics.image_scores, SCORER),
  "sliced_wasserstein": Row(_open_wasserstein, metrics.sliced_wasserstein),
  "throughput": Row(_open_throughput, metrics.throughput),
}


def evaluator(label: str, section: Section, samples: Samples) -> Evaluator:
  """The evaluator of a section of `config.evals`, checked.

  Grids of samples are drawn at step 0 too, unless their section says `at_start=False`: they are
  cheap, and show that sampling works. Scores are not, unless it says True: the score of a network
  that has learned nothing costs as much as any.

  One of your own is a marked factory: called with the `Setting` and the section's other keys, it
  gives the evaluator.
  """
  what = f"evals.{label}"
  name, every, keys, emas, kwargs = read(section, what, "every_steps", "samplers", "emas")
  if parts.was_handed_in(name):
    refuse = parts.missing(name, "evaluators", f"evaluator {label}")
    return Evaluator(refuse, tuple(keys), tuple(emas), every, kwargs.get("at_start", False))
  row = pick_part(EVALUATORS, name, f"evaluator ({what}.name)")
  at_start = kwargs.pop("at_start", name == "samples")
  scorer = None
  if name in EVALUATORS:
    if name == "frechet":
      _check_features(kwargs.get("features", ""), what)
    _check_arguments(row, f"{what} ({name})", kwargs)
    open_it = functools.partial(row.open, kwargs, what)
    if name == "frechet":
      scoring.check_scores(tuple(kwargs.get("scores", ("frechet",))))
      judging = {key: value for key, value in kwargs.items() if key not in IMAGE_SCORES}
      scorer = lambda setting, **changes: _scorer({**judging, **changes}, what, setting)
  else:
    open_it = lambda setting: call(row, f"{what} ({name})", setting, **kwargs)
  return Evaluator(
    open=open_it,
    samplers=tuple(keys),
    emas=tuple(emas),
    every_steps=every,
    at_start=at_start,
    scorer=scorer,
    scores=tuple(kwargs.get("scores", ("frechet",))) if scorer else (),
    batch_size=kwargs.get("batch_size"),
    num_samples=kwargs.get("num_samples"),
    measures_speed=name == "throughput",
    absent=_absent(what, name, section, samples),
  )


def _check_arguments(row: Row, what: str, kwargs: Mapping[str, Any]) -> None:
  """As `call`, for the arguments that are the section's; the others are handed in."""
  named = [p for p in arguments(row.arguments_of) if p.kind is p.KEYWORD_ONLY]
  accepted = [p.name for p in named]
  required = [p.name for p in named if p.default is p.empty and p.name != "emas"]
  if unknown := sorted(set(kwargs) - set(accepted) - set(row.others)):
    raise ValueError(f"{what} takes no {', '.join(unknown)}. It takes: {', '.join(accepted)}.")
  if missing := sorted(set(required) - set(kwargs)):
    raise ValueError(f"{what} needs {', '.join(missing)}. It takes: {', '.join(accepted)}.")


def _absent(what: str, name: str, section: Section, samples: Samples) -> str | None:
  """The key of the file without which there is nothing to evaluate; pages say None for it."""
  if "weights" in section and section["weights"] is None:
    return f"{what}.weights"
  return "data.records.vae" if name == "samples" and samples.latents and not samples.vae else None


def open_evaluators(
  experiment: Experiment, mesh: Mesh, guides: Mapping[str, Model] | None = None,
  *, emas: Collection[str] | None = None, kept: Kept | None = None,
  ask: Callable[[], None] = lambda: None,
) -> dict[str, metrics.Evaluator]:  # fmt: skip
  """{label: evaluator} of an experiment, each opened; without those whose file is not named.

  Args:
    experiment: whose evaluators.
    mesh: whose devices share the work.
    guides: the weaker models of autoguidance, by the sampler's key.
    emas: the averages that there are; None: those of the experiment.
    kept: where a run keeps what its evaluators would make anew in each sitting; None: nowhere.
    ask: is called between batches, see `Setting`.
  """
  guides, opened_all = guides or {}, {}
  by_name = functools.cache(
    lambda key: sampling.compiled_sampler(experiment, key, mesh, guides.get(key))
  )
  known = dict.fromkeys(experiment.averages if emas is None else emas)
  for label, one in experiment.evaluators.items():
    if one.absent:
      logger.info(
        "evals.%s is off, since %s is None: name a file to switch it on.", label, one.absent
      )
      continue
    for key in one.emas:
      pick(known, key, f"average (evals.{label}.emas)")
    drawn = {key: _asking(by_name(key), ask) for key in one.samplers}
    opened_all[label] = one.open(setting(experiment, one, mesh, drawn, kept)._replace(ask=ask))
  return opened_all


def _asking(sampler: metrics.Sampler, ask: Callable[[], None]) -> metrics.Sampler:
  """The sampler, which asks before each batch: all processes draw it together."""

  def draw(params, key, numbers):
    ask()
    return sampler(params, key, numbers)

  return draw


def setting(
  experiment: Experiment,
  one: Evaluator,
  mesh: Mesh,
  drawn: Mapping[str, metrics.Sampler] | None = None,
  kept: Kept | None = None,
) -> Setting:
  """What an evaluator of an experiment is told when it is opened."""
  record = experiment.record
  data = record.get("data", {})
  name = data.get("name", "")
  return Setting(
    samplers=drawn or {},
    emas=one.emas,
    source=functools.cache(functools.partial(opened, experiment)),
    samples=experiment.samples,
    mesh=mesh,
    about=_about(experiment, one),
    data={"name": name, "split": "train", **source_arguments(data)},
    kept=kept,
  )


def _about(experiment: Experiment, one: Evaluator) -> metrics.About:
  """What cards say of samplers, averages and seeds."""
  drawn = {}
  for key in one.samplers:
    sampler = experiment.samplers.get(key)
    if sampler is not None:
      facts = {"times": np.asarray(sampler.times).tolist(), "nfe": sampler.nfe}
      drawn[key] = {"key": key, **plain(sampler.record), **facts}
  sections = experiment.record.get("ema", {})
  averages = {ema: {"key": ema, **dict(sections.get(ema, {}))} for ema in one.emas}
  num_classes = experiment.samples.num_classes
  seeds = {"seed": experiment.run.seed, "labels": "in turn" if num_classes else None}
  return metrics.About(drawn, averages, seeds, num_classes)


def due(one: Evaluator, step: int) -> bool:
  """Whether an evaluator runs at this step of a training."""
  return step % one.every_steps == 0 and (step > 0 or one.at_start)


# --- scores for other programs: references, searches, sweeps ---


def scorer(experiment: Experiment, label: str, mesh: Mesh) -> tuple[metrics.Scorer, ToImages]:
  """How the evaluator `label` scores images, and how samples become images for it."""
  one = experiment.evaluators[label]
  assert one.scorer is not None, "asked of evaluators of images only"
  return one.scorer(setting(experiment, one, mesh))


def scorers(experiment: Experiment) -> list[str]:
  """The labels of the evaluators that score images."""
  return [label for label, one in experiment.evaluators.items() if one.scorer]


def reference(experiment: Experiment, label: str | None, mesh: Mesh) -> Reference:
  """What the Frechet evaluator `label`, or the first, has of the training split: to be written.

  With the labels only where its per_class asks for them.
  """
  label = first_frechet(experiment, "A reference") if label is None else label
  one = experiment.evaluators[label]
  assert one.scorer is not None, "asked of evaluators of images only"
  judge, _ = one.scorer(setting(experiment, one, mesh), reference="train", floor=False)
  return judge.reference()


GROUPS = 10  # parts of the samples, by which a difference says how sure it is
PER_FEATURE, LEAST = 2.5, 2_000  # samples of a probe, where nobody says how many


class SearchScore(NamedTuple):
  """How a search of intermediate times scores those that it tries.

  Attributes:
    num_steps: of the sampler.
    num_samples: of a probe.
    score: intermediate times -> the Frechet distance, from the same noise each time.
    gain: times, other times -> by how much the first are better from other noise, and its standard
      error: both from the same noise, by leaving out one part of the samples after another.
    bias: the distance that as many perfect samples would have.
  """

  num_steps: int
  num_samples: int
  score: Callable[[tuple[float, ...]], float]
  gain: Callable[[tuple[float, ...], tuple[float, ...]], tuple[float, float]]
  bias: Callable[[], float]


def search_score(
  experiment: Experiment,
  key: str,
  mesh: Mesh,
  params: Params,
  noise_key: Array,
  num_samples: int | None,
) -> SearchScore:
  """How a search of a sampler's times scores: in the features of the first Frechet evaluator.

  Args:
    experiment: whose sampler and evaluators.
    key: of the sampler.
    mesh: whose devices draw.
    params: of the network.
    noise_key: of the noise.
    num_samples: of a probe; None: as many as the distance needs, 2.5 a feature and 2,000 at least,
      but no more than the evaluator takes.
  """
  num_steps, at = sampling.timed_sampler(experiment, key, mesh)
  label = first_frechet(experiment, "A search of times")
  one = experiment.evaluators[label]
  if num_samples is not None and num_samples < 2:
    raise ValueError(f"A search cannot score on {num_samples} samples: take 1,000 or more.")
  judge, to_images = scorer(experiment, label, mesh)
  reference = judge.reference().features.moments
  assert reference is not None, "a Frechet evaluator's reference has moments"
  if num_samples is None:
    enough = max(LEAST, math.ceil(PER_FEATURE * judge.detector.dim))
    num_samples = min(enough, one.num_samples or enough)
  groups = min(GROUPS, num_samples)
  # One size of batch for all, so that the sampler is compiled once.
  batch_size = min(num_samples // groups, one.batch_size or num_samples)
  metrics.check_counts(batch_size=batch_size)

  def look(times, numbers, what):
    draw = functools.partial(at(times), params, noise_key)
    what = f"{key} at {', '.join(f'{t:.4f}' for t in times)}{what}"
    found = judge.look(metrics.batches(draw, to_images, what, numbers, batch_size)).moments
    assert found is not None, "a Frechet evaluator's features have moments"
    return found

  def score(times):
    return float(frechet.distance(look(times, range(num_samples), ""), reference))

  def gain(times, others):
    size = max(1, round(num_samples / groups / batch_size)) * batch_size
    starts = range(num_samples, num_samples + groups * size, size)  # none of those of `score`
    in_parts = lambda mid: [look(mid, range(i, i + size), ", other noise") for i in starts]
    return _gain(in_parts(times), in_parts(others), reference)

  bias = lambda: frechet.bias(reference, num_samples)
  return SearchScore(num_steps, num_samples, score, gain, bias)


def _gain(
  parts: Sequence[frechet.Moments], others: Sequence[frechet.Moments], reference: frechet.Moments
) -> tuple[float, float]:
  """How much nearer one set of samples is than another, and the standard error of that.

  Both are in parts, of which the same ones have the same noise. The error is the jackknife's: what
  the difference is without each part. So the noise that both share counts for neither.
  """

  def nearer(chosen):
    sets = (frechet.merge_all([each[i] for i in chosen]) for each in (parts, others))
    first, second = (frechet.distance(one, reference) for one in sets if one is not None)
    return second - first

  count = len(parts)
  without = [nearer([i for i in range(count) if i != left_out]) for left_out in range(count)]
  spread = np.mean((np.asarray(without) - np.mean(without)) ** 2)
  return float(nearer(range(count))), float(np.sqrt((count - 1) * spread))


def frechet_scores(
  experiment: Experiment, mesh: Mesh, guides: Mapping[str, Model] | None = None
) -> tuple[str, Callable[[Params, Array], dict[str, float]]]:
  """The first Frechet evaluator, for any parameters: its label, and the scores.

  The scores are (params, key) -> {sampler: distance}, from the same noise for the same key.
  """
  label = first_frechet(experiment, "A sweep of averages")
  one = experiment.evaluators[label]._replace(emas=("posthoc",))
  only = experiment._replace(evaluators={label: one})
  evaluate = open_evaluators(only, mesh, guides, emas=("posthoc",))[label]

  def scores(params, key):
    values = dict(evaluate({"posthoc": params}, key))
    return {name: float(values[f"{name}/posthoc"]) for name in one.samplers}

  return label, scores


def first_frechet(experiment: Experiment, what: str) -> str:
  """The label of the first Frechet evaluator, which `what` needs."""
  label = next(iter(scorers(experiment)), None)
  if label is None:
    raise ValueError(f"{what} needs a 'frechet' evaluator in config.evals: its features.")
  if "frechet" not in experiment.evaluators[label].scores:
    raise ValueError(f"{what} needs 'frechet' among evals.{label}.scores.")
  return label


def plain(section: Any) -> dict[str, Any]:
  """A section as a dict of dicts."""
  return {k: plain(v) if isinstance(v, Mapping) else v for k, v in dict(section).items()}


def _decoded(sample: metrics.Sampler, decoding: Decoder | None) -> metrics.Sampler:
  """A sampler whose samples are images."""
  if decoding is None:
    return sample

  def images(params, key, numbers):
    own, drawn = sample(params, key, numbers)
    return own, decoding.decode(drawn)

  return images
