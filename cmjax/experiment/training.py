"""What a train step is made of beside the loss: optimizers, averages, the state of step 0."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cmjax import ema, networks
from cmjax.experiment.losses import curriculum_of, target_name, weightings
from cmjax.experiment.models import NETWORKS
from cmjax.experiment.sections import call, pick, read
from cmjax.run.snapshots import DTYPES, Plan
from cmjax.training import optim
from cmjax.training.step import TrainState, make_init
from cmjax.types import Network

SCHEDULES = {"constant": optim.constant, "inverse_sqrt": optim.inverse_sqrt}
OPTIMIZERS = {"adam": optim.adam, "radam": optim.radam}
AVERAGES = {"half_life": ema.half_life, "constant": ema.constant, "power": ema.power}


def schedule(config: ConfigDict) -> optax.Schedule:
  """The learning rate by step."""
  return _schedule(config.optim, "optim")


def _schedule(section: ConfigDict, what: str) -> optax.Schedule:
  name, kwargs = read(section.schedule, f"{what}.schedule")
  factory = pick(SCHEDULES, name, f"schedule ({what}.schedule.name)")
  return call(factory, f"{what}.schedule ({name})", section.lr, **kwargs)


def _chain(section: ConfigDict, what: str, *others: str) -> optax.GradientTransformation:
  """The chain of a section; its keys `others`, if they are there, are somebody else's."""
  name, _, _, kwargs = read(section, what, "lr", "schedule")
  kwargs = {key: value for key, value in kwargs.items() if key not in others}
  factory = pick(OPTIMIZERS, name, f"optimizer ({what}.name)")
  return call(factory, f"{what} ({name})", _schedule(section, what), **kwargs)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The optax chain of `config.optim`; beside it that of the fake score, where VSD trains one.

  The weights that a network wants at unit norm are put back there after each update.
  """
  tx, paths = _optimizer(config), _normalized_paths(config)
  return optax.chain(tx, optim.project(networks.normalize_kernel, paths)) if paths else tx


def loss_scale(config: ConfigDict) -> float:
  """`config.optim.loss_scale`: by what the loss is multiplied for a body in float16; 1 without."""
  scale = config.optim.get("loss_scale", 1.0)
  if not scale > 0:
    raise ValueError(f"optim.loss_scale={scale} must be positive; for float16 try 2.0**15.")
  return float(scale)


def _normalized_paths(config: ConfigDict) -> list[str]:
  """Where the weights are that are held at unit norm: those that the network names, and its fake's.

  In EDM2's networks these are all kernels, the one of its head for logvar too; in others, none.
  """
  network = pick(NETWORKS, config.net.name, "network (net.name)")
  paths = [f"^(net|fake)/.*({path})" for path in getattr(network, "normalized_paths", ())]
  if config.loss.get("weighting") == "edm2":
    paths.append("^weighting/logvar_linear/kernel$")
  return paths


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
  main = _chain(config.optim, "optim", "loss_scale")
  if not config.loss.get("vsd"):
    return main
  own = config.loss.vsd.fake
  if "optim" not in own:
    raise ValueError("loss.vsd.fake needs an optim section: the fake score has its own optimizer.")
  label = lambda params: {key: "fake" if "fake" in key else "main" for key in params}
  return optax.partition({"main": main, "fake": _chain(own.optim, "loss.vsd.fake.optim")}, label)


def ema_decays(config: ConfigDict) -> dict[str, ema.Decay]:
  """The averages of `config.ema`, by name, and the target network's where the loss has one."""
  if not config.ema:
    raise ValueError("config.ema needs at least one average: samples are drawn from averages.")
  decays = {name: _average(config, section, name) for name, section in config.ema.items()}
  if target_name(config):
    decays["target"] = _target(config)
  return decays


def snapshots(config: ConfigDict) -> Plan | None:
  """What `config.snapshots` (every_steps, emas, dtype) asks for; None where there is none."""
  if not config.get("snapshots"):
    return None
  return call(functools.partial(_snapshots, config), "snapshots", **config.snapshots)


def _snapshots(
  config: ConfigDict, *, every_steps: int, emas: tuple[str, ...], dtype: str = "float16"
) -> Plan:
  pick(DTYPES, dtype, "dtype (snapshots.dtype)")
  if every_steps < 1:
    raise ValueError(f"snapshots.every_steps={every_steps} must be at least 1.")
  sections = {name: pick(dict(config.ema), name, "average (snapshots.emas)") for name in emas}
  power = [name for name, section in config.ema.items() if section.name == "power"]
  if not sections or not set(sections) <= set(power):
    raise ValueError(
      f"snapshots.emas={tuple(emas)} must be averages of the kind 'power': no other has a profile "
      f"that lengths can be made of later. This config has: {', '.join(power) or 'none'}."
    )
  lengths = {name: float(section.sigma_rel) for name, section in sections.items()}
  if len(set(lengths.values())) < len(lengths):
    raise ValueError(f"snapshots.emas: two of one length tell nothing more than one: {lengths}.")
  return Plan(every_steps, lengths, dtype)


def _average(config: ConfigDict, section: ConfigDict, label: str) -> ema.Decay:
  name, kwargs = read(section, f"ema.{label}")
  factory = pick(AVERAGES, name, f"average (ema.{label}.name)")
  if "batch_size" in inspect.signature(factory).parameters:
    kwargs["batch_size"] = config.batch_size
  return call(factory, f"ema.{label} ({name})", **kwargs)


def _target(config: ConfigDict) -> ema.Decay:
  name, kwargs = read(config.loss.target, "loss.target")
  if "target" in config.ema:
    raise ValueError("ema.target is the name of the loss's own target network: take another name.")
  if name == "curriculum":
    curriculum = curriculum_of(config)
    kwargs.setdefault("s0", config.loss.curriculum.get("s0"))
    return call(ema.curriculum, "loss.target (curriculum)", curriculum, **kwargs)
  pick(("current", "constant", "curriculum"), name, "target (loss.target.name)")
  return call(ema.constant, "loss.target (constant)", **kwargs)


def state_init(config: ConfigDict, net: Network) -> Callable[..., TrainState]:
  """(key, start=None, fake=None) -> the TrainState of step 0.

  `start` are the network's first weights and `fake` those of the fake score that VSD trains; where
  they are not given they are random. All weights that are held at unit norm are put there.
  """
  weights, tx, names = weightings(config), optimizer(config), tuple(ema_decays(config))
  paths = _normalized_paths(config)

  def init(key, start=None, fake=None):
    def init_params(key):
      key_net, key_weighting = jax.random.split(key)
      params = {"net": net.init(key_net) if start is None else start}
      params |= {name: weight.init(key_weighting) for name, weight in weights.items()}
      if config.loss.get("vsd"):
        params["fake"] = jax.tree.map(jnp.copy, params["net"] if fake is None else fake)
      return optim.at_paths(networks.normalize_kernel, paths, params)

    return make_init(init_params, tx, names)(key)

  return init
