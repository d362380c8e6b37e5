"""The loss of a config: a method, and the pieces it is made of."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cmjax import distances, guidance, latents, tangent, times, weighting
from cmjax.base.npz import opened
from cmjax.experiment.models import PRECISION, tangent_network
from cmjax.experiment.sections import Section, call, pick, read, sample_shape
from cmjax.losses import continuous, continuous_2023, diffusion, discrete, distribution, lpips
from cmjax.types import LossFn, Model, Network, Params, VelocityFn

# What is learned from data alone, and what also needs a teacher. iCT and ECT are "ct" with other
# pairs, distance and weight; discrete sCM is "sct" and "scd" with the tangent "discrete".
METHODS = ("diffusion", "sct", "ct", "ct_continuous", "scd", "cd", "cd_continuous")
DISTILLATION = ("scd", "cd", "cd_continuous")
WEIGHTINGS = ("learned", "constant", "inverse_sigma", "edm2")
TANGENTS = {
  "exact": tangent.exact,
  "central": tangent.central,
  "semi_continuous": tangent.semi_continuous,
  "discrete": tangent.discrete,
}
CURRICULA = {
  "square_root": times.square_root,
  "doubling": times.doubling,
  "fixed": times.fixed,
}
PAIRS = {
  "uniform": times.uniform_pairs,
  "lognormal": times.lognormal_pairs,
  "ect": times.ect_pairs,
}
DISTANCES = {
  "squared_l2": distances.squared_l2,
  "l1": distances.l1,
  "l2": distances.l2,
  "pseudo_huber": distances.pseudo_huber,
}


def _weighting(config: ConfigDict, *, unit_l2: bool = False) -> weighting.Weighting:
  name = pick(WEIGHTINGS, config.loss.get("weighting", ""), "weighting (loss.weighting)")
  if name == "constant":
    return weighting.constant()
  if name == "inverse_sigma":
    return weighting.inverse_sigma(sigma_data=config.sigma_data)
  if name == "edm2":
    return weighting.edm2(sigma_data=config.sigma_data)
  # A tangent of unit L2 norm has a mean square of 1/D, so that is where w = log D starts.
  return weighting.learned(bias=float(np.log(np.prod(sample_shape(config)))) if unit_l2 else 0.0)


def weightings(config: ConfigDict) -> dict[str, weighting.Weighting]:
  """The weightings that the method trains, by their names in the parameters."""
  if config.loss.name in ("ct", "cd", "ct_continuous", "cd_continuous"):
    return {}
  unit_l2 = config.loss.name != "diffusion" and config.loss.get("norm", "l2") == "l2"
  made = {"weighting": _weighting(config, unit_l2=unit_l2)}
  if config.loss.get("vsd"):
    made |= {key: weighting.learned() for key in ("vsd_weighting", "fake_weighting")}
  return made


def loss(
  config: ConfigDict, net: Network, teacher: Model | None = None, lpips_weights: Params = None
) -> LossFn:
  """The loss of `config.loss`; of latents, which are drawn first.

  Args:
    config: its `loss` section is a method and that method's arguments.
    net: the network to train.
    teacher: the frozen diffusion model, for methods that distil one.
    lpips_weights: as `lpips_weights(config)` reads them, for the distance "lpips".
  """
  return latents.drawn(_loss(config, net, teacher, lpips_weights))


def _loss(config: ConfigDict, net: Network, teacher: Model | None, lpips_weights: Params) -> LossFn:
  name = read(config.loss, "loss")[0]
  pick(METHODS, name, "method (loss.name)")
  if name in DISTILLATION and teacher is None:
    raise ValueError(f"loss.name={name!r} distils a teacher: set teacher.workdir to its workdir.")
  if name == "diffusion":
    return _diffusion(config, net)
  if name in ("sct", "scd"):
    return _continuous(config, net, _velocity(config, teacher), teacher)
  velocity, distance = _velocity(config, teacher), _distance(config, lpips_weights)
  if name in ("ct", "cd"):
    return _discrete(config, net, velocity, distance)
  return _continuous_2023(config, net, velocity, distance)


def _velocity(config: ConfigDict, teacher: Model | None) -> VelocityFn:
  """The data's trajectory, or that of the teacher, under guidance where the loss has it."""
  if config.loss.name not in DISTILLATION or teacher is None:
    return continuous.data_velocity()
  net, params = teacher
  if config.loss.get("guidance"):
    net = Network(net.init, guidance.classifier_free(net.apply))
  return continuous.teacher_velocity(net, params, sigma_data=config.sigma_data)


def _diffusion(config: ConfigDict, net: Network) -> LossFn:
  _, P_mean, P_std, _, kwargs = read(config.loss, "loss", "P_mean", "P_std", "weighting")
  sigma_data = config.sigma_data
  sample_t = times.lognormal(P_mean, P_std, sigma_data=sigma_data)
  weight = weightings(config)["weighting"]
  return call(
    diffusion.loss, "loss (diffusion)", net, sample_t, weight, sigma_data=sigma_data, **kwargs
  )


def _continuous(
  config: ConfigDict, net: Network, velocity: VelocityFn, teacher: Model | None
) -> LossFn:
  """sCT and sCD, with any estimator of the tangent, and with VSD beside where the loss has it."""
  name, P_mean, P_std, _, kwargs = read(config.loss, "loss", "P_mean", "P_std", "weighting")
  sigma_data, weights = config.sigma_data, weightings(config)
  estimator, grid = _estimator(config, kwargs.pop("tangent", None) or {"name": "exact"})
  draw = functools.partial(times.binned_lognormal, **grid) if grid else times.lognormal
  vsd = kwargs.pop("vsd", None)
  for key in ("guidance", "num_segments"):
    part = {"guidance": "guidance", "num_segments": "segment"}[key]
    if kwargs.get(key, 1) not in (None, 1) and not config.net.get(part, False):
      raise ValueError(f"loss.{key} needs a network that is told its {part}: net.{part}=True.")
  if kwargs.get("guidance") and name == "sct":
    raise ValueError("loss.guidance guides a teacher, and sct has none: take loss.name='scd'.")
  base = call(
    continuous.loss,
    f"loss ({name})",
    net,
    velocity,
    draw(P_mean, P_std, sigma_data=sigma_data),
    weights["weighting"],
    sigma_data=sigma_data,
    estimator=estimator,
    tangent_net=tangent_network(config),
    **kwargs,
  )
  if not vsd:
    return base
  if name != "scd" or teacher is None:
    raise ValueError(f"loss.vsd compares with a teacher: loss.name must be 'scd', not {name!r}.")
  if kwargs.get("num_segments", 1) != 1:
    raise ValueError("loss.vsd needs a student that jumps to t = 0: set loss.num_segments=1.")
  return _distribution(config, vsd, base, net, velocity, weights)


def _distribution(config, vsd, base, net, velocity, weights) -> LossFn:
  sample = lambda section: times.lognormal(
    section["P_mean"], section["P_std"], sigma_data=config.sigma_data
  )
  options = {key: value for key, value in vsd.items() if key not in ("P_mean", "P_std", "fake")}
  if missing := [key for key in ("P_mean", "P_std", "fake") if key not in vsd]:
    raise ValueError(f"loss.vsd needs P_mean, P_std, fake; not there: {', '.join(missing)}.")
  return call(
    distribution.loss,
    "loss.vsd",
    base,
    net,
    velocity,
    sample(vsd),
    sample(vsd["fake"]),
    weights["vsd_weighting"],
    weights["fake_weighting"],
    sigma_data=config.sigma_data,
    guidance=config.loss.get("guidance"),
    **options,
  )


def _estimator(config: ConfigDict, section: Section) -> tuple[tangent.Estimator, dict[str, Any]]:
  """How the tangent is found, and the grid of times where it needs one."""
  name, kwargs = read(section, "loss.tangent")
  for key in PRECISION:
    kwargs.pop(key, None)  # of the network, not of the estimator
  factory, what = pick(TANGENTS, name, "estimator (loss.tangent.name)"), f"loss.tangent ({name})"
  if name != "discrete":
    return call(factory, what, **kwargs), {}
  below = lambda t: call(times.below, what, t, sigma_data=config.sigma_data, **kwargs)
  below(jnp.ones(1))  # so that a wrong argument is found here
  return factory(below), kwargs


def _discrete(config: ConfigDict, net: Network, velocity: VelocityFn, distance) -> LossFn:
  """CT and CD, and with other pairs, distance and weight iCT and ECT."""
  name, section, _, kwargs = read(config.loss, "loss", "pairs", "distance")
  for key in ("curriculum", "target"):
    kwargs.pop(key, None)
  solver = kwargs.pop("solver", "heun") if name == "cd" else None
  pairs, curriculum = _pairs(config, section)
  return call(
    discrete.loss,
    f"loss ({name})",
    net,
    discrete.teacher_step(velocity, solver) if solver else discrete.data_step(),
    pairs,
    distance,
    sigma_data=config.sigma_data,
    target="average" if target_name(config) else "current",
    curriculum=curriculum,
    **kwargs,
  )


def _continuous_2023(config: ConfigDict, net: Network, velocity: VelocityFn, distance) -> LossFn:
  name, section, kwargs = read(config.loss, "loss", "distance")
  if name == "ct_continuous" and not kwargs.get("stop_gradient", True):
    raise ValueError(
      "loss.stop_gradient=False (theorems 3 and 4) needs a teacher's ODE: the data's velocity is "
      "right only in the mean, and a square is not linear. Take loss.name='cd_continuous'."
    )
  # These two are forms of their own: a Hessian is not asked for.
  distance = section["name"] if section["name"] in ("squared_l2", "l1") else distance
  return call(
    continuous_2023.loss,
    f"loss ({name})",
    net,
    velocity,
    distance,
    sigma_data=config.sigma_data,
    **kwargs,
  )


def _pairs(
  config: ConfigDict, section: Section
) -> tuple[times.SamplePair, times.Curriculum | None]:
  name, kwargs = read(section, "loss.pairs")
  factory, what = pick(PAIRS, name, "pairs (loss.pairs.name)"), f"loss.pairs ({name})"
  if name != "ect":
    curriculum = curriculum_of(config)
    return call(factory, what, curriculum, **kwargs), curriculum
  last = (kwargs.get("num_stages") or 1) * (kwargs.get("steps_per_stage") or 0)
  if last > config.total_steps:
    raise ValueError(
      f"loss.pairs (ect) has {kwargs['num_stages']} stages of {kwargs['steps_per_stage']} steps, "
      f"longer than the training of total_steps={config.total_steps}. Make one fit the other."
    )
  return call(factory, what, **kwargs), None


def curriculum_of(config: ConfigDict) -> times.Curriculum:
  """N(k) of `config.loss.curriculum`, which must fit into the training."""
  if "curriculum" not in config.loss:
    raise ValueError(f"config.loss needs a curriculum; choose from: {', '.join(CURRICULA)}.")
  name, kwargs = read(config.loss.curriculum, "loss.curriculum")
  if (length := kwargs.get("total_steps", 0)) > config.total_steps:
    raise ValueError(
      f"loss.curriculum.total_steps={length} is longer than the training of "
      f"total_steps={config.total_steps}, which would end on a grid of the wrong size. Set both."
    )
  factory = pick(CURRICULA, name, "curriculum (loss.curriculum.name)")
  return call(factory, f"loss.curriculum ({name})", **kwargs)


def target_name(config: ConfigDict) -> str | None:
  """The average that is the loss's target network; None where that is the network as it is."""
  target = config.loss.get("target", {"name": "current"})
  return None if target["name"] == "current" else "target"


def _distance(config: ConfigDict, lpips_weights: Params) -> distances.Distance:
  *_, section, _ = read(config.loss, "loss", "distance")
  name, kwargs = read(section, "loss.distance")
  if name != "lpips":
    factory = pick(DISTANCES | {"lpips": None}, name, "distance (loss.distance.name)")
    return call(factory, f"loss.distance ({name})", **kwargs)
  kwargs.pop("path", None)
  return call(lpips.distance, "loss.distance (lpips)", lpips_weights, **kwargs)


def lpips_weights(config: ConfigDict) -> Params | None:
  """The weights of the LPIPS network, from the file that the distance names; else None."""
  section = config.loss.get("distance", {})
  if section.get("name") != "lpips":
    return None
  path = Path(section.get("path", "")).expanduser()
  if not path.is_file():
    raise ValueError(
      f"loss.distance 'lpips' needs loss.distance.path, an .npz with its weights; got "
      f"{str(section.get('path', ''))!r}. cmjax ships none: see cmjax/losses/lpips.py."
    )
  try:
    with opened(path) as file:
      weights = {key: file[key] for key in file.files}
  except ValueError as error:
    raise ValueError(f"loss.distance.path: {path} is no .npz of weights: {error}.") from error
  lpips.check(weights)
  return weights
