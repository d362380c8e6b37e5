"""Runs on disk as others use them: to go on with, to distil, to start from, to guide with."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import build, checkpoint, sharding
from cmjax.train_step import TrainState
from cmjax.types import Array, Model, Network, Params

logger = logging.getLogger("cmjax")

# What may differ between two sittings of one run: how long, how often, where; not what.
FREE = ("total_steps", "log_every_steps", "checkpoint", "evals", "samplers", "mesh", "nonfinite")


# Intermediate times of few-step samplers, by the sampler's key; written by mode search.
TIMES = "sampler_times.json"


class Trained(NamedTuple):
  """What another run left: its config, network and averages, at the step of its checkpoint."""

  config: ConfigDict
  net: Network
  averages: dict[str, Params]  # {ema name: params of the network}
  step: int


def load_state(workdir: str | Path, mesh: Mesh) -> checkpoint.Restored:
  """The newest good checkpoint of a run, laid out on `mesh`; the run is not changed by it."""

  def layout(meta):
    config = ConfigDict(meta["config"])
    init = build.state_init(config, build.network(config))
    return sharded(jax.eval_shape(init, jax.random.key(0)), mesh)

  return checkpoint.read(Path(workdir).expanduser(), layout)


def load_network(workdir: str | Path, mesh: Mesh) -> Trained:
  """The networks of a run, from its newest good checkpoint; the run is not changed by it."""
  restored = load_state(workdir, mesh)
  config = ConfigDict(restored.meta["config"])
  return Trained(config, build.network(config), restored.state.ema, restored.step)


def load_model(config: ConfigDict, section: ConfigDict, mesh: Mesh) -> Model:
  """The network and the average of `section` (workdir, ema), which must fit this run's data."""
  trained = load_network(section.workdir, mesh)
  return trained.net, _average(config, trained, section)


def _average(config: ConfigDict, trained: Trained, section: ConfigDict) -> Params:
  _check_relative(config, trained.config, section.workdir)
  return build.pick(trained.averages, section.ema, f"average (ema) of {section.workdir}")


def write_times(workdir: str | Path, found: Mapping[str, Any]) -> None:
  """Adds the times that a search found, {sampler: {mid_times: ..., ...}}, to the run's."""
  path = Path(workdir) / TIMES
  before = json.loads(path.read_text()) if path.is_file() else {}
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(before | dict(found), indent=2) + "\n")
  partial.replace(path)


def with_searched_times(config: ConfigDict, workdir: str | Path) -> ConfigDict:
  """The config with the intermediate times that were searched for this run, where there are any."""
  path = Path(workdir) / TIMES
  if not path.is_file():
    return config
  config = config.copy_and_resolve_references()
  for key, found in json.loads(path.read_text()).items():
    section = config.samplers.get(key)
    if section is not None and section.get("searched", True):
      with config.unlocked():
        config.samplers[key] = {k: v for k, v in section.items() if k != "mid_sigmas"}
        config.samplers[key].mid_times = tuple(found["mid_times"])
      logger.info("samplers.%s: mid_times=%s, from %s.", key, found["mid_times"], path)
  return config


def load_teacher(config: ConfigDict, mesh: Mesh) -> Model | None:
  """The frozen network of `config.teacher`, or None where its workdir is empty."""
  if not config.teacher.workdir:
    return None
  trained = load_network(config.teacher.workdir, mesh)
  if config.loss.get("guidance") and not trained.config.loss.get("label_dropout", 0.0):
    raise ValueError(
      f"loss.guidance asks the teacher in {config.teacher.workdir} for its prediction without a "
      "class, but it was trained with loss.label_dropout=0: train one with 0.1, or drop guidance."
    )
  return trained.net, _average(config, trained, config.teacher)


def load_guides(config: ConfigDict, mesh: Mesh) -> dict[str, Model]:
  """The weaker models of the samplers under autoguidance, by the sampler's key."""
  guided = {key: section.get("guidance") for key, section in config.samplers.items()}
  return {
    key: load_model(config, section, mesh)
    for key, section in guided.items()
    if section and section.name == "autoguidance"
  }


def _check_relative(config: ConfigDict, other: ConfigDict, workdir: str) -> None:
  """Raises if a teacher's data scale or shape are others than this run's."""
  for key in ("resolution", "in_channels", "dim", "num_classes"):
    if config.net.get(key) != other.net.get(key):
      raise ValueError(
        f"The network in {workdir} has net.{key}={other.net.get(key)}, this run has "
        f"{config.net.get(key)}. Take one that was trained on the same data."
      )
  if config.sigma_data != other.sigma_data:
    raise ValueError(
      f"The network in {workdir} was trained with sigma_data={other.sigma_data}, this run has "
      f"{config.sigma_data}. Set sigma_data={other.sigma_data}."
    )


def first_weights(config: ConfigDict, net: Network, key: Array, mesh: Mesh) -> Params | None:
  """The weights that `config.init_from` names, grown to this network; None: random ones.

  A part that this network has beside (guidance, segment) starts at zero, so that the network starts
  as the one that it comes from.
  """
  if not config.init_from.workdir:
    return None
  trained = load_network(config.init_from.workdir, mesh)
  # With the same shapes: nothing but the samples would show it.
  for name, default in (("preconditioning", "trigflow"), ("embedding", "positional")):
    ours, theirs = (c.net.get(name, default) for c in (config, trained.config))
    if ours != theirs:
      raise ValueError(
        f"init_from: the network in {config.init_from.workdir} has net.{name}={theirs!r}, this run "
        f"has {ours!r}: its weights would mean something else. Set net.{name}={theirs!r}."
      )
  params = _average(config, trained, config.init_from)
  return grow(net, params, key, f"init_from: {config.init_from.workdir}")


def grow(net: Network, params: Params, key: Array, what: str) -> Params:
  """Another run's weights as those of `net`, or an error that says in which tensors they differ."""
  ours, theirs = _shapes(jax.eval_shape(net.init, key)), _shapes(params)
  if ours == theirs:
    return params
  try:
    return build.grow(params, net.init(key))
  except ValueError as error:
    raise ValueError(f"{what} does not fit this network. {error}") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}


def sharded(abstract: Any, mesh: Mesh) -> Any:
  """Shapes with the shardings that the arrays are to have."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    sharding.shard_params(abstract, mesh),
  )


def layout(config: ConfigDict, abstract: TrainState, mesh: Mesh, meta: dict[str, Any]) -> Any:
  """How the state of this run is to be restored, if the stored config is that of this run."""
  ours, theirs = _flat(json.loads(json.dumps(config.to_dict()))), _flat(meta["config"])
  differ = [
    f"{key}: {theirs.get(key, 'not set')} in the checkpoint, {ours.get(key, 'not set')} now"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and key.split(".")[0] not in FREE
  ]
  if differ:
    raise ValueError(
      "The config does not fit the checkpoints in the workdir:\n  "
      + "\n  ".join(differ)
      + "\nTake the old values, or another --workdir."
    )
  return sharded(abstract, mesh)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts as {a.b.c: value}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
