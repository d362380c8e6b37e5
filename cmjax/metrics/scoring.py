"""Scores of a set of images against a reference, all from one look at each image.

| score | values | needs of the reference |
|---|---|---|
| frechet | frechet | mean and covariance |
| sfid | sfid | those of the spatial features |
| kernel | kernel, kernel_std, kernel_half_width | features |
| precision_recall | precision, recall | features |
| density_coverage | density, coverage | features |
| inception_score | inception_score, inception_score_std | nothing |
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from cmjax.base.ranges import Count, Range
from cmjax.metrics import frechet, inception_score, kernel, neighbours
from cmjax.metrics.detectors import Detector
from cmjax.metrics.features import Features, Reference, collect, of_class

logger = logging.getLogger("cmjax")

SCORES = {  # score -> what of `features.KINDS` it needs of the samples
  "frechet": "moments",
  "sfid": "spatial_moments",
  "kernel": "rows",
  "precision_recall": "rows",
  "density_coverage": "rows",
  "inception_score": "logits",
}
# What says how sure a value is, beside it in a card only.
BESIDE = ("kernel_std", "kernel_half_width", "inception_score_std")
# Of two values of one of these the lower is the better, of the others the higher.
LOWER_IS_BETTER = ("frechet", "sfid", "kernel")


class Options(NamedTuple):
  """What the scores are computed with; a card has those of its scores.

  Attributes:
    num_subsets: of the kernel distance.
    subset_size: images in each.
    k: neighbours of precision and recall.
    k_density: neighbours of density and coverage.
    num_splits: parts of the Inception score.
  """

  num_subsets: Count = 100
  subset_size: Annotated[int, Range(2, 2**31 - 1)] = 1_000
  k: Count = 3
  k_density: Count = 5
  num_splits: Count = 10

  def of(self, scores: Collection[str]) -> dict[str, int]:
    """Those that matter to these scores."""
    names = {
      "kernel": ("num_subsets", "subset_size"),
      "precision_recall": ("k",),
      "density_coverage": ("k_density",),
      "inception_score": ("num_splits",),
    }
    return {name: getattr(self, name) for score in scores for name in names.get(score, ())}


def check_scores(scores: Sequence[str]) -> None:
  """Raises ValueError for a name that is no score, one that is there twice, or none at all."""
  unknown = [score for score in scores if score not in SCORES]
  if unknown or not scores or len(set(scores)) < len(scores):
    raise ValueError(
      f"scores={tuple(scores)} must be one or more of: {', '.join(SCORES)}, each once."
    )


def check_numbers(num: int, scores: Collection[str], options: Options, what: str) -> None:
  """Raises ValueError for fewer images than a score can be computed from."""
  least = {
    "kernel": ("subset_size", options.subset_size),
    "precision_recall": ("k", options.k + 1),
    "density_coverage": ("k_density", options.k_density + 1),
    "inception_score": ("num_splits", options.num_splits),
  }
  for score in scores:
    option, needed = least.get(score, ("", 2))
    if num < needed:
      by = f" with {option}={getattr(options, option)}" if option else ""
      raise ValueError(
        f"{what} has {num:,} images, and the score {score!r}{by} needs {needed:,} or more."
      )


def needs(scores: Collection[str], *, per_class: bool = False) -> tuple[str, ...]:
  """What to keep of the features of samples: which of `features.KINDS`."""
  kinds = [SCORES[score] for score in scores]
  if per_class:
    kinds += [kind.replace("moments", "rows") for kind in kinds]
  return tuple(dict.fromkeys(kinds))


def reference_needs(scores: Collection[str], *, per_class: bool = False) -> tuple[str, ...]:
  """What to keep of the features of a reference: at least its moments, by which it is known."""
  kinds = needs([s for s in scores if s != "inception_score"], per_class=per_class)
  return tuple(dict.fromkeys(("moments", *kinds)))


def check_reference(
  reference: Reference, detector: Detector, scores: Collection[str], *, per_class: bool = False
) -> None:
  """Raises ValueError for a reference of another detector, or one that has not what scores need."""
  record, features = reference.record, reference.features
  where = f"The reference {record.get('file', record['kind'])}"
  theirs = record.get("detector")
  if isinstance(theirs, Mapping):
    differ = [
      f"{key} is {theirs.get(key)!r} there and {detector.record.get(key)!r} here"
      for key in sorted(theirs.keys() | detector.record.keys())
      if theirs.get(key) != detector.record.get(key)
    ]
    if differ:
      raise ValueError(
        f"{where} was made by another detector: {'; '.join(differ)}. Take the same detector, or "
        "make statistics with this one: --mode=reference."
      )
  elif theirs != detector.name:
    raise ValueError(
      f"{where} is of kind {record['kind']!r}, which is for the detector {theirs!r}; this one is "
      f"{detector.name!r}. Make statistics with this one: --mode=reference."
    )
  for kind, what in (("moments", "features"), ("rows", "features")):
    found = getattr(features, kind)
    dim = None if found is None else len(found.mean) if kind == "moments" else found.shape[1]
    if dim not in (None, detector.dim):
      raise ValueError(
        f"{where} has {dim:,} {what}, the detector {detector.name!r} {detector.dim:,}: it was made "
        "by another."
      )
  if per_class and (features.labels is None or features.rows is None):
    raise ValueError(
      f"{where} has no classes: per_class=True needs reference='train', the labelled data itself, "
      "or a file that was made with it."
    )
  for score in scores:
    _check_has(reference, score, where)


def _check_has(reference: Reference, score: str, where: str) -> None:
  kind = SCORES[score]
  if score == "inception_score" or getattr(reference.features, kind) is not None:
    return
  if kind == "rows" and reference.images is not None:
    return
  what = {
    "moments": "mean and covariance (mu, sigma)",
    "spatial_moments": "statistics of spatial features (mu_s, sigma_s)",
    "rows": "features (feats) or images (arr_0)",
  }[kind]
  raise ValueError(
    f"{where} has no {what}, which the score {score!r} needs. Leave it out, take "
    "reference='train', or make a file that has them: --mode=reference."
  )


def with_rows(reference: Reference, detector: Detector, scores: Collection[str]) -> Reference:
  """The reference with features of its images, if a score needs them and they are not there."""
  features, images = reference.features, reference.images
  if images is None or features.rows is not None or "rows" not in needs(scores):
    return reference
  seen = collect(
    ((np.arange(i, min(i + 500, len(images))), images[i : i + 500], None)
     for i in range(0, len(images), 500)),
    detector.apply, keep=("rows",),
  )  # fmt: skip
  record = reference.record | {"num_rows": seen.num}
  return Reference(features._replace(rows=seen.rows), record, images)


def values(
  samples: Features,
  reference: Reference,
  scores: Sequence[str],
  options: Options,
  *,
  spread: neighbours.Spread = neighbours.here,
) -> dict[str, float]:
  """The values of these scores, in the order of the table above."""
  theirs, found = reference.features, {}
  if "frechet" in scores:
    found["frechet"] = _frechet(samples.moments, theirs.moments)
  if "sfid" in scores:
    found["sfid"] = _frechet(samples.spatial_moments, theirs.spatial_moments)
  if "kernel" in scores:
    sizes = dict(num_subsets=options.num_subsets, subset_size=options.subset_size)
    distance = kernel.distance(_there(samples.rows), _there(theirs.rows), **sizes)
    found |= dict(zip(("kernel", "kernel_std", "kernel_half_width"), distance, strict=True))
  if {"precision_recall", "density_coverage"} & set(scores):
    near = neighbours.compare(
      _there(samples.rows), _there(theirs.rows), k=options.k, k_density=options.k_density,
      spread=spread,
    )._asdict()  # fmt: skip
    for score in ("precision_recall", "density_coverage"):
      found |= {name: near[name] for name in score.split("_") if score in scores}
  if "inception_score" in scores:
    seen = inception_score.score(_there(samples.logits), num_splits=options.num_splits)
    found |= {"inception_score": seen.mean, "inception_score_std": seen.std}
  return found


def class_values(
  samples: Features, reference: Reference, scores: Sequence[str], options: Options
) -> dict[str, dict[str, float]]:
  """{class: values} of every class that the samples have.

  Raises:
    ValueError: samples or reference have no labels, or the reference has none of a class.
  """
  if samples.labels is None or reference.features.labels is None:
    raise ValueError(
      "per_class=True needs labels of the samples and of the reference: a class-conditional "
      "network, and data with classes."
    )
  found = {}
  for label in np.unique(samples.labels).tolist():
    theirs = of_class(reference.features, label) if label in reference.features.labels else None
    if theirs is None:
      raise ValueError(f"The reference has no image of class {label}, which the samples have.")
    of = Reference(theirs, reference.record)
    found[str(label)] = values(of_class(samples, label), of, scores, options)
  return found


def warnings(num: int, reference: Reference, scores: Collection[str]) -> list[str]:
  """What has to be said beside values of so many samples."""
  moments = reference.features.moments
  if "frechet" not in scores or moments is None or num > len(moments.mean):
    return []
  return [
    f"{num:,} images are not more than the {len(moments.mean):,} features: the covariance is "
    f"singular, and {num:,} draws of the reference's own Gaussian would be at "
    f"{frechet.bias(moments, num):.4g} from it. Take more images, and compare only equal numbers."
  ]


def better(name: str, a: float, b: float) -> float:
  """The better of two values of one name."""
  return min(a, b) if name in LOWER_IS_BETTER else max(a, b)


def _frechet(a: frechet.Moments | None, b: frechet.Moments | None) -> float:
  return frechet.distance(_there(a), _there(b))


def _there(kept: Any) -> Any:
  assert kept is not None, "what a score needs is checked before images are looked at"
  return kept
