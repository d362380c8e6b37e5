"""The methods: one factory and one row each. `METHODS` is the only list of them.

A factory takes the `Scene` and the keyword arguments of `config.loss`, and gives a `Method`. Yours
does the same: mark it with `cmjax.base.parts.part` and set `loss.name="my_package:my_method"`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import distances, edm, ema, guidance, latents, tangent, times, weighting
from cmjax.base import parts
from cmjax.base.npz import opened
from cmjax.experiment import optimizers
from cmjax.experiment.fields import Method
from cmjax.experiment.models import PRECISION, precision
from cmjax.experiment.sections import Section, call, pick, pick_part, read
from cmjax.losses import continuous, continuous_2023, diffusion, discrete, distribution, lpips
from cmjax.types import Model, Network, Params, VelocityFn


class Scene(NamedTuple):
  """What a method is told of the experiment around it.

  Attributes:
    sigma_data: std of data and noise.
    shape: of one sample.
    total_steps: of the training.
  """

  sigma_data: float
  shape: tuple[int, ...]
  total_steps: int


WEIGHTINGS: dict[str, Callable[..., weighting.Weighting]] = {
  "constant": lambda scene, bias: weighting.constant(),
  "inverse_sigma": lambda scene, bias: weighting.inverse_sigma(sigma_data=scene.sigma_data),
  "edm2": lambda scene, bias: weighting.edm2(sigma_data=scene.sigma_data),
  "learned": lambda scene, bias: weighting.learned(bias=bias),
}
PROPOSALS = {"lognormal": times.lognormal}
TANGENTS = {
  "exact": tangent.exact,
  "central": tangent.central,
  "semi_continuous": tangent.semi_continuous,
  "discrete": tangent.discrete,
}
# Network evaluations of an estimator beside F itself.
TANGENT_EVALUATIONS = {"exact": 1, "central": 2, "semi_continuous": 3, "discrete": 1}
TRAINED = 3  # a forward pass, and the backward pass of its gradient, which counts as two
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


def method(scene: Scene, section: Section) -> Method:
  """The method of `config.loss`; a batch of latents is drawn before the loss sees it."""
  name, kwargs = read(section, "loss")
  if parts.was_handed_in(name):
    refuse, dropout = parts.missing(name, "method"), kwargs.get("label_dropout", 0.0)
    return Method(name, refuse, label_dropout=dropout, sampled=refuse)
  if name in METHODS:
    made = METHODS[name].make(scene, name, kwargs)
  else:
    factory = pick_part(METHODS, name, "method (loss.name)")
    made = call(factory, f"loss ({name})", scene, **kwargs)
    if not isinstance(made, Method):
      raise ValueError(f"loss.name={name!r} gave a {type(made).__name__}: it must give a Method.")
  return made._replace(name=name, loss=lambda net, frozen: latents.drawn(made.loss(net, frozen)))


# --- weightings and proposals: what several methods share ---


def _weighting(scene: Scene, wanted: Any, *, bias: float = 0.0) -> weighting.Weighting:
  """A weighting by its name, or by a section with a name and arguments."""
  what = "weighting (loss.weighting)"
  if isinstance(wanted, str) or not wanted:
    wanted = wanted or ""
    factory = pick_part(WEIGHTINGS, wanted, what)
    return factory(scene, bias) if wanted in WEIGHTINGS else factory()
  name, kwargs = read(wanted, "loss.weighting")
  if name not in WEIGHTINGS:
    return call(pick_part(WEIGHTINGS, name, what), f"loss.weighting ({name})", **kwargs)
  if name == "learned":
    kwargs = {"bias": bias} | kwargs
  elif name != "constant":
    kwargs = {"sigma_data": scene.sigma_data} | kwargs
  return call(getattr(weighting, name), f"loss.weighting ({name})", **kwargs)


def _start_bias(scene: Scene, norm: str) -> float:
  """Where a learned w starts: at log D for a tangent of unit L2 norm, whose mean square is 1/D."""
  return float(np.log(np.prod(scene.shape))) if norm == "l2" else 0.0


def _train_weightings(weightings: Mapping[str, weighting.Weighting]) -> Callable[..., Params]:
  """`Method.init` of a method that trains these, by their names in the parameters."""
  return lambda key, net, teacher: {name: w.init(key) for name, w in weightings.items()}


def _normalized(name: Any) -> tuple[str, ...]:
  """The kernel of EDM2's head for logvar is held at unit norm."""
  name = name if isinstance(name, str) else dict(name or {}).get("name")
  return ("^weighting/logvar_linear/kernel$",) if name == "edm2" else ()


def _proposal(
  scene: Scene, section: Section, what: str, grid: Mapping[str, Any] | None = None
) -> times.SampleT:
  """p(t): `proposal`, a section; or P_mean and P_std, of the log-normal one."""
  if not section.get("proposal"):
    P_mean, P_std = section["P_mean"], section["P_std"]
    draw = functools.partial(times.binned_lognormal, **grid) if grid else times.lognormal
    return draw(P_mean, P_std, sigma_data=scene.sigma_data)
  name, kwargs = read(section["proposal"], f"{what}.proposal")
  if grid:
    pick(("lognormal",), name, f"proposal of discrete times ({what}.proposal.name)")
    draw = functools.partial(times.binned_lognormal, **grid)
    return call(draw, f"{what}.proposal ({name})", sigma_data=scene.sigma_data, **kwargs)
  factory = pick_part(PROPOSALS, name, f"proposal ({what}.proposal.name)")
  return call(factory, f"{what}.proposal ({name})", sigma_data=scene.sigma_data, **kwargs)


def _with_proposal(name: str, kwargs: dict[str, Any]) -> list[Any]:
  """[what says p(t), the weighting, the other arguments] of a loss that has both."""
  keys = ("proposal",) if kwargs.get("proposal") else ("P_mean", "P_std")
  # Without a weighting the choices are listed.
  section = {"name": name, "weighting": "", **kwargs}
  _, *values, weight, rest = read(section, "loss", *keys, "weighting")
  rest.pop("proposal", None)
  return [dict(zip(keys, values, strict=True)), weight, rest]


# --- diffusion: the teachers ---


def _diffusion(scene: Scene, name: str, kwargs: dict[str, Any]) -> Method:
  proposal, weight_name, rest = _with_proposal(name, kwargs)
  weight = _weighting(scene, weight_name)
  sample_t = _proposal(scene, proposal, "loss")
  make = lambda net, frozen: call(
    diffusion.loss, f"loss ({name})", net, sample_t, weight, sigma_data=scene.sigma_data, **rest
  )
  return Method(
    name,
    make,
    _train_weightings({"weighting": weight}),
    label_dropout=rest.get("label_dropout", 0.0),
    normalized_paths=_normalized(weight_name),
    evaluations=TRAINED,
  )


# --- continuous time on TrigFlow: sCT, sCD, and VSD beside it ---


def _velocity(scene: Scene, distils: bool, guided: bool, teacher: Model | None) -> VelocityFn:
  """The data's trajectory, or that of the teacher, under guidance where the loss has it."""
  if not distils or teacher is None:
    return continuous.data_velocity()
  net, params = teacher
  if guided:
    net = net._replace(apply=guidance.classifier_free(net.apply))
  return continuous.teacher_velocity(net, params, sigma_data=scene.sigma_data)


def _estimator(scene: Scene, section: Section) -> tuple[tangent.Estimator, dict[str, Any]]:
  """How the tangent is found, and the grid of times where it needs one."""
  name, kwargs = read(section, "loss.tangent")
  for key in PRECISION:
    kwargs.pop(key, None)  # of the network, not of the estimator
  what = f"loss.tangent ({name})"
  factory = pick_part(TANGENTS, name, "estimator (loss.tangent.name)")
  if name != "discrete":
    return call(factory, what, **kwargs), {}
  below = lambda t: call(times.below, what, t, sigma_data=scene.sigma_data, **kwargs)
  below(jnp.ones(1))  # so that a wrong argument is found here
  return factory(below), kwargs


def tangent_network(net: Network, wanted: Mapping[str, Any]) -> Network | None:
  """The network at the precision that a tangent wants; None where that is its own."""
  if not wanted or net.at is None or wanted.items() <= precision(net.options).items():
    return None
  return net.at(**wanted)


def _scm(scene: Scene, name: str, kwargs: dict[str, Any]) -> Method:
  """sCT and sCD, with any estimator of the tangent, and with VSD beside where the loss has it."""
  proposal, weight_name, rest = _with_proposal(name, kwargs)
  section = rest.pop("tangent", None) or {"name": "exact"}
  estimator, grid = _estimator(scene, section)
  sample_t = _proposal(scene, proposal, "loss", grid)
  bias = _start_bias(scene, rest.get("norm", "l2"))
  weights = {"weighting": _weighting(scene, weight_name, bias=bias)}
  vsd, wanted = rest.pop("vsd", None), precision(section)
  guided = bool(rest.get("guidance"))
  if guided and name == "sct":
    raise ValueError("loss.guidance guides a teacher, and sct has none: take loss.name='scd'.")

  def make(net, frozen):
    return call(
      continuous.loss,
      f"loss ({name})",
      net,
      _velocity(scene, name == "scd", guided, frozen.teacher),
      sample_t,
      weights["weighting"],
      sigma_data=scene.sigma_data,
      estimator=estimator,
      tangent_net=tangent_network(net, wanted),
      **rest,
    )

  of_tangent = TANGENT_EVALUATIONS.get(section["name"])  # not known of one from outside
  of_teacher = 1 + guided if name == "scd" else 0
  needs = ("guidance",) * guided + ("segment",) * (rest.get("num_segments", 1) not in (None, 1))
  base = Method(
    name,
    make,
    _train_weightings(weights),
    distils=name == "scd",
    needs=needs,
    teacher_needs_no_class=guided,
    normalized_paths=_normalized(weight_name),
    tangent=wanted,
    evaluations=None if of_tangent is None else TRAINED + of_tangent + of_teacher,
  )
  return _with_vsd(scene, base, vsd, rest, weights) if vsd else base


def _with_vsd(
  scene: Scene,
  base: Method,
  section: Section,
  kwargs: Mapping[str, Any],
  weights: Mapping[str, weighting.Weighting],
) -> Method:
  """sCD with variational score distillation beside: a fake score is trained as well."""
  if base.name != "scd":
    raise ValueError(
      f"loss.vsd compares with a teacher: loss.name must be 'scd', not {base.name!r}."
    )
  if kwargs.get("num_segments", 1) != 1:
    raise ValueError("loss.vsd needs a student that jumps to t = 0: set loss.num_segments=1.")
  wanted = ("proposal", "fake") if section.get("proposal") else ("P_mean", "P_std", "fake")
  if missing := [key for key in wanted if key not in section]:
    raise ValueError(f"loss.vsd needs {', '.join(wanted)}; not there: {', '.join(missing)}.")
  if "optim" not in section["fake"]:
    raise ValueError("loss.vsd.fake needs an optim section: the fake score has its own optimizer.")
  weights = {**weights, **{key: weighting.learned() for key in ("vsd_weighting", "fake_weighting")}}
  sample_t_vsd = _proposal(scene, section, "loss.vsd")
  sample_t_fake = _proposal(scene, section["fake"], "loss.vsd.fake")
  options = {k: v for k, v in section.items() if k not in ("P_mean", "P_std", "fake", "proposal")}
  fake_tx = optimizers.chain(section["fake"]["optim"], "loss.vsd.fake.optim")[0]

  def make(net, frozen):
    return call(
      distribution.loss,
      "loss.vsd",
      base.loss(net, frozen),
      net,
      _velocity(scene, True, base.teacher_needs_no_class, frozen.teacher),
      sample_t_vsd,
      sample_t_fake,
      weights["vsd_weighting"],
      weights["fake_weighting"],
      sigma_data=scene.sigma_data,
      guidance=kwargs.get("guidance"),
      **options,
    )

  def init(key, net, teacher):
    params = _train_weightings(weights)(key, net, teacher)
    return params | {"fake": jax.tree.map(jnp.copy, net if teacher is None else teacher)}

  label = lambda params: {key: "fake" if "fake" in key else "main" for key in params}
  # The generator; teacher and fake score on its sample; the fake score's own step.
  beside = TRAINED + (1 + base.teacher_needs_no_class) + 1 + TRAINED
  return base._replace(
    loss=make,
    init=init,
    starts_from_teacher=True,
    optimizer=lambda tx: optax.partition({"main": tx, "fake": fake_tx}, label),
    evaluations=None if base.evaluations is None else base.evaluations + beside,
  )


# --- discrete time: CT, CD, and with other pairs, distance and weight iCT and ECT ---


def curriculum_of(scene: Scene, section: Section) -> times.Curriculum:
  """N(k) of `loss.curriculum`, which must fit into the training."""
  if "curriculum" not in section:
    raise ValueError(f"config.loss needs a curriculum; choose from: {', '.join(CURRICULA)}.")
  name, kwargs = read(section["curriculum"], "loss.curriculum")
  if (length := kwargs.get("total_steps", 0)) > scene.total_steps:
    raise ValueError(
      f"loss.curriculum.total_steps={length} is longer than the training of "
      f"total_steps={scene.total_steps}, which would end on a grid of the wrong size. Set both."
    )
  factory = pick_part(CURRICULA, name, "curriculum (loss.curriculum.name)")
  return call(factory, f"loss.curriculum ({name})", **kwargs)


def _pairs(
  scene: Scene, section: Section, loss: Section
) -> tuple[times.SamplePair, times.Curriculum | None]:
  name, kwargs = read(section, "loss.pairs")
  factory, what = pick_part(PAIRS, name, "pairs (loss.pairs.name)"), f"loss.pairs ({name})"
  if name != "ect":
    curriculum = curriculum_of(scene, loss)
    return call(factory, what, curriculum, **kwargs), curriculum
  last = (kwargs.get("num_stages") or 1) * (kwargs.get("steps_per_stage") or 0)
  if last > scene.total_steps:
    raise ValueError(
      f"loss.pairs (ect) has {kwargs['num_stages']} stages of {kwargs['steps_per_stage']} steps, "
      f"longer than the training of total_steps={scene.total_steps}. Make one fit the other."
    )
  return call(factory, what, **kwargs), None


def _target(scene: Scene, section: Section) -> ema.Decay | None:
  """The decay of the target network; None where the target is the network as it is."""
  if (section.get("target") or {"name": "current"})["name"] == "current":
    return None
  name, kwargs = read(section["target"], "loss.target")
  if name == "curriculum":
    curriculum = curriculum_of(scene, section)
    kwargs.setdefault("s0", section["curriculum"].get("s0"))
    return call(ema.curriculum, "loss.target (curriculum)", curriculum, **kwargs)
  pick(("current", "constant", "curriculum"), name, "target (loss.target.name)")
  return call(ema.constant, "loss.target (constant)", **kwargs)


def _shifted(scene: Scene, section: Section) -> dict[str, Any]:
  """`Method.sampled` of CM's networks, whose boundary is at sigma_min."""
  if not (sigma_min := section.get("sigma_min", 0.0)):
    return {}
  grid = dict(sigma_data=scene.sigma_data, sigma_min=sigma_min)
  return {"sampled": lambda apply: edm.shifted(apply, **grid)}


def _discrete(scene: Scene, name: str, kwargs: dict[str, Any]) -> Method:
  _, pairs_section, distance_section, rest = read(
    {"name": name, **kwargs}, "loss", "pairs", "distance"
  )
  for key in ("curriculum", "target"):
    rest.pop(key, None)
  solver = rest.pop("solver", "heun") if name == "cd" else None
  if solver:
    discrete.teacher_step(continuous.data_velocity(), solver)  # an unknown one is found here
  pairs, curriculum = _pairs(scene, pairs_section, kwargs)
  target, distance = _target(scene, kwargs), _distance(distance_section)

  def make(net, frozen):
    velocity = _velocity(scene, name == "cd", False, frozen.teacher)
    return call(
      discrete.loss,
      f"loss ({name})",
      net,
      discrete.teacher_step(velocity, solver) if solver else discrete.data_step(),
      pairs,
      distance(frozen.lpips),
      sigma_data=scene.sigma_data,
      target="current" if target is None else "average",
      curriculum=curriculum,
      **rest,
    )

  return Method(
    name,
    make,
    distils=name == "cd",
    target=target,
    lpips=lambda: _lpips_weights(distance_section),
    evaluations=TRAINED + 1 + {"euler": 1, "heun": 2}.get(solver or "", 0),
    **_shifted(scene, kwargs),
  )


# --- continuous time as of 2023 ---


def _continuous_2023(scene: Scene, name: str, kwargs: dict[str, Any]) -> Method:
  _, section, rest = read({"name": name, **kwargs}, "loss", "distance")
  if name == "ct_continuous" and not rest.get("stop_gradient", True):
    raise ValueError(
      "loss.stop_gradient=False (theorems 3 and 4) needs a teacher's ODE: the data's velocity is "
      "right only in the mean, and a square is not linear. Take loss.name='cd_continuous'."
    )
  distance = _distance(section)

  def make(net, frozen):
    # These two are forms of their own: a Hessian is not asked for.
    chosen = section["name"] if section["name"] in ("squared_l2", "l1") else distance(frozen.lpips)
    return call(
      continuous_2023.loss,
      f"loss ({name})",
      net,
      _velocity(scene, name == "cd_continuous", False, frozen.teacher),
      chosen,
      sigma_data=scene.sigma_data,
      **rest,
    )

  return Method(
    name,
    make,
    distils=name == "cd_continuous",
    lpips=lambda: _lpips_weights(section),
    evaluations=TRAINED + 1 + (name == "cd_continuous"),  # with the stop-gradient
    **_shifted(scene, kwargs),
  )


# --- distances ---


def _distance(section: Section) -> Callable[[Params], distances.Distance]:
  """The weights of LPIPS -> the distance of a section; the others do without."""
  name, kwargs = read(section, "loss.distance")
  if name == "lpips":
    kwargs.pop("path", None)
    return lambda weights: call(lpips.distance, "loss.distance (lpips)", weights, **kwargs)
  factory = pick_part(DISTANCES | {"lpips": None}, name, "distance (loss.distance.name)")
  made = call(factory, f"loss.distance ({name})", **kwargs)
  return lambda weights: made


def _lpips_weights(section: Section) -> Params | None:
  """The weights of the LPIPS network, from the file that the distance names; else None."""
  if section["name"] != "lpips":
    return None
  path = Path(section.get("path", "")).expanduser()
  if not path.is_file():
    raise ValueError(
      f"loss.distance 'lpips' needs loss.distance.path, an .npz with its weights; got "
      f"{str(section.get('path', ''))!r}. cmjax ships none: see cmjax/losses/lpips.py for how to "
      "make it."
    )
  try:
    with opened(path) as file:
      weights = {key: file[key] for key in file}
  except ValueError as error:
    raise ValueError(f"loss.distance.path: {path} is no .npz of weights: {error}.") from error
  lpips.check(weights)
  return weights


# --- the table ---


class Row(NamedTuple):
  """A method: its factory, its title, and the paper that it is from."""

  make: Callable[[Scene, str, dict[str, Any]], Method]
  title: str
  paper: str


# iCT and ECT are "ct" with other pairs, distance and weight; discrete sCM is "sct" and "scd" with
# the tangent "discrete"; sCD+VSD and multistep sCD are "scd" with arguments.
METHODS = {
  "diffusion": Row(
    _diffusion, "diffusion teachers (EDM, TrigFlow)", "arXiv 2206.00364, 2410.11081"
  ),
  "sct": Row(_scm, "sCT: continuous-time consistency training", "arXiv 2410.11081"),
  "scd": Row(_scm, "sCD: continuous-time consistency distillation", "arXiv 2410.11081"),
  "ct": Row(
    _discrete, "CT, iCT, ECT: consistency training", "arXiv 2303.01469, 2310.14189, 2406.14548"
  ),
  "cd": Row(_discrete, "CD: consistency distillation", "arXiv 2303.01469"),
  "ct_continuous": Row(_continuous_2023, "CT in continuous time as of 2023", "arXiv 2303.01469"),
  "cd_continuous": Row(_continuous_2023, "CD in continuous time as of 2023", "arXiv 2303.01469"),
}
