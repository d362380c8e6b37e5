"""What the curves, scores and parts of time of a run are, in words for a newcomer."""

from collections.abc import Mapping
from typing import Any

# The kinds of methods that read differently. What is neither says nothing of its loss.
CONSISTENCY, DIFFUSION = "consistency", "diffusion"

LOOK_AT = {
  CONSISTENCY: (
    "Judge this run by its samples and its scores, not by its loss. If the scores get worse, look "
    "at the tangent norm and the F error by time t."
  ),
  DIFFUSION: (
    "Judge this run by its samples and its scores. The F error by time t shows how far it has "
    "learned each level of noise."
  ),
}

_LOSS = {
  CONSISTENCY: (
    "Not a measure of progress. It may rise while samples get better, since its target is made by "
    "the network itself. A rise while the tangent warms up is normal."
  ),
  DIFFUSION: (
    "Falls fast, then slowly. Below zero is normal with a learned weighting. Compare it only "
    "between runs with the same data, proposal and weighting."
  ),
}

# By the group of `charts.groups`. A trailing "/" is a family, one line per member.
_CURVES = {
  "tangent_norm": (
    "The size of the training signal. It rises while the tangent warms up, then should stay level. "
    "A steady rise after that, or jumps, come before bad samples."
  ),
  "tangent_norm/": (
    "Where in time the training signal is large. If the lines of large t rise first, P_mean is too "
    "large."
  ),
  "distance": "How far the two points of a pair are apart after the network. Less is better.",
  "distance/": "The same for each range of time t.",
  "lr": "The step size of the optimizer, as the config plans it.",
  "images_per_sec": "Training speed, without compilation, evaluations and saves.",
  "steps_per_sec": "Training speed, without compilation, evaluations and saves.",
  "mfu": "Computation a second, as a share of what the chips can do at most.",
  "goodput/": "Which share of the time since the start went into what. All shares add to 1.",
  "wall_sec": "Time since the start, over all sittings.",
  "grad_norm": "The size of the gradient. Single spikes are harmless; a steady rise is not.",
  "skipped": "Steps left out because their loss or gradient was not finite. It should stay at 0.",
  "spikes": "Steps with an unusually large gradient or tangent norm. Few are harmless.",
  "rolled_back": "How often the run went back to a checkpoint. It should stay at 0.",
  "nonfinite": "The share of steps whose loss or gradient was not finite. It should stay at 0.",
  "weight": "The weights that the loss gives to samples.",
  "weight_min": "The smallest weight that the loss gives to a sample.",
  "weight_max": "The largest weight that the loss gives to a sample.",
  "sigma_gap": "How far the two points of a pair are apart in noise.",
  "sigma_ratio": "The smaller noise of a pair by the larger. It nears 1 as the gap shrinks.",
  "num_levels": "How many levels of noise there are at this step, as the config plans it.",
  "consistency_loss": "The part of the loss that the consistency method has without VSD.",
  "vsd_loss": "The part of the loss that draws samples towards the teacher's distribution.",
  "vsd_gap/": "The same for each range of time t.",
  "vsd_gap": "How far the teacher and the fake score are apart on samples of the student.",
  "vsd_weight": "The weights that the VSD loss gives to samples.",
  "fake_loss": "The loss of the fake score, a second network that follows the student's samples.",
  "fake_F_error": "The error of the fake score. It should stay level while the student learns.",
  "fake_F_error/": "The same for each range of time t.",
  "fake_weight": "The weights of the fake score's loss.",
  "jvp_error": "The error of the tangent against float64. A rise means that precision is lost.",
  "jvp_error/": "The same for each range of time t.",
  "slowest_host": "Which host is the slowest. One that is always there has a fault.",
  "slowest_host_step_sec": "The time of a step on the slowest host. All others wait for it.",
  "slowest_host_data_sec": "The longest wait for a batch of all hosts.",
  "evaluation_sec/": "How long each evaluator took.",
}
_F_ERROR = {
  DIFFUSION: (
    "The error of the network's prediction. 1 is a network that has learned nothing; less is "
    "better. It does not reach 0, since noise cannot be predicted."
  ),
  CONSISTENCY: (
    "How far the network is from the velocity it is trained with. It often rises a little at first "
    "and then stays level. A steady rise is a warning."
  ),
}


def curves(kind: str) -> dict[str, str]:
  """{group of curves: a sentence} for a kind of method."""
  found = dict(_CURVES)
  if kind in _LOSS:
    found |= {"loss": _LOSS[kind], "F_error": _F_ERROR[kind]}
    found["F_error/"] = (
      "The same for each range of time t: small t is little noise, large t is much."
    )
  return found


def of_several() -> dict[str, str]:
  """`curves` for runs of several kinds of methods beside each other."""
  several = "Runs of different methods cannot be compared by it."
  return curves("") | {"loss": several, "F_error": several}


PARTS = {  # of wall time, by `goodput.KINDS`
  "steps": "training steps that were kept",
  "data": "waiting for data",
  "saves": "waiting for checkpoints",
  "evaluations": "scores and pictures",
  "compiling": "compiling the step",
  "start": "starting up",
  "lost": "steps made a second time",
  "away": "between two sittings",
}

_FEATURES = {
  "pixels": "the pixels themselves",
  "classifier": "the features of a small classifier",
  "inception": "the features of the Inception network",
}
_VALUES = {
  "precision": "Precision: the share of samples that look like real images. Higher is better.",
  "recall": "Recall: the share of real images that the samples cover. Higher is better.",
  "density": "Density: how many real images are near a sample. Higher is better.",
  "coverage": "Coverage: the share of real images with a sample nearby. Higher is better.",
  "kernel": "Kernel distance (KID), estimated without the bias of few samples. Lower is better.",
  "sfid": "Fréchet distance of features that keep their place in the image. Lower is better.",
  "inception_score": (
    "Inception score: how clear and how varied the classes of the samples are. Higher is better."
  ),
}


SPEED = "Images that the sampler draws in a second."
NFE = "Evaluations of the network for one sample: what a sample costs."


def score(section: Mapping[str, Any], value: str = "") -> str:
  """What an evaluator's score is, by its section of the config; "" of one that is not ours.

  Args:
    section: name, features, num_samples.
    value: of it; "" is its main one.
  """
  name, num = section.get("name"), section.get("num_samples")
  many = f"{num:,} samples" if isinstance(num, int) else "the samples"
  if name == "sliced_wasserstein" and not value:
    return (
      f"Sliced Wasserstein distance between {many} and as many training points. 0 would be the "
      "same points. Lower is better."
    )
  if name == "throughput":
    return SPEED
  if name != "frechet":
    return ""
  if value:
    return _VALUES.get(value, "")
  features = str(section.get("features", ""))
  seen = _FEATURES.get(features, f"the features of {features}")
  return (
    f"Fréchet distance between {many} and the training images, in {seen}. 0 would be the same mean "
    "and covariance. Lower is better. Compare it only with scores of the same features, training "
    "images and number of samples."
  )


def floor(num_held_out: int | None, num_samples: int | None) -> str:
  """What the floor of a score is, and what a small number of held-out images does to it."""
  many = f"{num_held_out:,} real images" if num_held_out else "real images"
  text = (
    f"The score of {many} that were held out of training. Samples as good as real "
    "images score about the floor, and value / floor says how many times it a score is."
  )
  if num_held_out and num_samples and num_held_out < num_samples:
    text += (
      f" Here they are fewer than the {num_samples:,} samples, and fewer images score worse: this "
      "floor is too high, and a good model can be below it."
    )
  return text
