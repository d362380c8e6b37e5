"""Runs on disk as others use them: to go on with, to distil, to start from, to guide with.

An average that `python -m cmjax.ema` made has a name like the others: posthoc_0.050 is the one of
sigma_rel 0.05 at the latest step that it was made for, posthoc_0.050_step4096 the one at that step.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import experiment
from cmjax.base import param_names, sharding
from cmjax.base.atomic_files import write_json
from cmjax.base.flat_dicts import flat
from cmjax.run import checkpoint, snapshots
from cmjax.training.step import TrainState
from cmjax.types import Array, Model, Network, Params

logger = logging.getLogger("cmjax")

# What may differ between two sittings of one run: how long, how often, where; not what.
FREE = (
  *("total_steps", "log_every_steps", "checkpoint", "evals", "samplers", "mesh", "nonfinite"),
  *("snapshots", "microbatch", "steps_per_dispatch", "doctor"),
  *("net.remat", "net.scan", "net.attention"),  # how it is computed
  *("data.records.vae", "data.records.cache"),  # for images of samples; where a bucket is mirrored
)

# Intermediate times of few-step samplers, by the sampler's key; written by mode search.
TIMES = "sampler_times.json"
# The values of the config that were changed between two sittings, because the user asked for it.
CHANGES = "config_changes.jsonl"

_POSTHOC = re.compile(r"posthoc_(\d*\.?\d+)(?:_step(\d+))?")


class Snapshots(NamedTuple):
  """The stored copies of a run's averages."""

  config: ConfigDict
  emas: dict[int, dict[str, float]]  # {step: {ema name: sigma_rel}}, by rising step
  read: Callable[[int], dict[str, Params]]  # step -> {ema name: params}, as they were stored


class Trained(NamedTuple):
  """What another run left: its config, network and averages, at the step of its checkpoint."""

  config: ConfigDict
  net: Network
  averages: dict[str, Params]  # {ema name: params of the network}
  step: int


def read_config(workdir: str | Path) -> ConfigDict:
  """The config that a run had when it last started."""
  path = Path(workdir).expanduser() / "config.json"
  if not path.is_file():
    raise ValueError(f"No config.json in {workdir}: train first, or correct the path of the run.")
  return ConfigDict(json.loads(path.read_text()))


def load_state(workdir: str | Path, mesh: Mesh) -> checkpoint.Restored:
  """The newest good checkpoint of a run, laid out on `mesh`; the run is not changed by it."""

  def layout(meta):
    config = ConfigDict(meta["config"])
    init = experiment.state_init(config, experiment.network(config))
    return sharded(jax.eval_shape(init, jax.random.key(0)), mesh)

  return checkpoint.read(Path(workdir).expanduser(), layout)


def load_network(workdir: str | Path, mesh: Mesh) -> Trained:
  """The networks of a run, from its newest good checkpoint; the run is not changed by it."""
  restored = load_state(workdir, mesh)
  config = ConfigDict(restored.meta["config"])
  return Trained(config, experiment.network(config), restored.state.ema, restored.step)


def load_model(config: ConfigDict, section: ConfigDict, mesh: Mesh) -> Model:
  """The network and the average of `section` (workdir, ema), which must fit this run's data."""
  trained = load_network(section.workdir, mesh)
  return trained.net, _average(config, trained, section, mesh)


def _average(config: ConfigDict, trained: Trained, section: ConfigDict, mesh: Mesh) -> Params:
  _check_relative(config, trained.config, section.workdir)
  return load_average(trained, section.workdir, section.ema, mesh)[0]


def load_average(
  trained: Trained, workdir: str | Path, name: str, mesh: Mesh
) -> tuple[Params, int]:
  """An average of a run by its name, of its checkpoint or a post-hoc one, and the step it is of."""
  wanted = None if name in trained.averages else _POSTHOC.fullmatch(name)
  if wanted is None:
    return experiment.pick(trained.averages, name, f"average (ema) of {workdir}"), trained.step
  folder = posthoc_folder(workdir, float(wanted[1]))
  if not folder.is_dir():
    raise ValueError(
      f"There is no average {name!r} in {workdir}. To make it: "
      f"python -m cmjax.ema --workdir={workdir} --sigma_rel={wanted[1]}"
    )
  shapes = jax.eval_shape(trained.net.init, jax.random.key(0))
  stored = checkpoint.Checkpoints(folder, read_only=True)
  with contextlib.closing(stored):
    step = int(wanted[2]) if wanted[2] else max(stored.steps(), default=0)
    return stored.load(step, lambda meta: {"params": sharded(shapes, mesh)}).state["params"], step


def load_averages(
  config: ConfigDict, trained: Trained, workdir: str | Path, mesh: Mesh
) -> dict[str, Params]:
  """The averages of a run, and those post-hoc ones that config.evals names."""
  named = {name for section in config.evals.values() for name in section.get("emas", ())}
  missing = sorted(named - set(trained.averages))
  return trained.averages | {
    name: load_average(trained, workdir, name, mesh)[0] for name in missing
  }


def length(sigma_rel: float) -> str:
  """A length of averages as it is in names: 0.050, 0.1235."""
  text = f"{sigma_rel:.3f}"
  return text if float(text) == sigma_rel else f"{sigma_rel:.6f}".rstrip("0")


def posthoc_folder(workdir: str | Path, sigma_rel: float) -> Path:
  """Where the post-hoc averages of one length are: checkpoints, by the steps that they are of."""
  return Path(workdir).expanduser() / "posthoc" / f"sigma_rel_{length(sigma_rel)}"


@contextlib.contextmanager
def open_snapshots(workdir: str | Path, mesh: Mesh) -> Iterator[Snapshots]:
  """The stored copies of a run's averages, laid out on `mesh` when they are read."""
  path = Path(workdir).expanduser()
  if not (path / snapshots.FOLDER).is_dir():
    raise ValueError(
      f"No snapshots in {workdir}: averages are made of those that a run with config.snapshots "
      "stores while it trains."
    )
  stored = checkpoint.Checkpoints(path, read_only=True, folder=snapshots.FOLDER)
  with contextlib.closing(stored):
    metas = {step: stored.meta(step) for step in sorted(stored.steps())}
    if not metas:
      raise ValueError(f"No snapshot in {workdir} is complete yet: train that run first.")
    config = ConfigDict(metas[max(metas)]["config"])
    shapes = jax.eval_shape(experiment.network(config).init, jax.random.key(0))

    def layout(meta):
      copy = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, meta["dtype"]), shapes)
      return sharded({name: copy for name in meta["emas"]}, mesh)

    emas = {step: dict(meta["emas"]) for step, meta in metas.items()}
    yield Snapshots(config, emas, lambda step: stored.load(step, layout).state)


def write_times(workdir: str | Path, found: Mapping[str, Any]) -> None:
  """Adds the times that a search found, {sampler: {mid_times: ..., ...}}, to the run's."""
  path = Path(workdir) / TIMES
  before = json.loads(path.read_text()) if path.is_file() else {}
  write_json(path, before | dict(found))


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
  return trained.net, _average(config, trained, config.teacher, mesh)


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
  ours, theirs = experiment.latent_convention(config), experiment.latent_convention(other)
  if ours != theirs:
    raise ValueError(
      f"The network in {workdir} was trained on {_latents(theirs)}, this run is for "
      f"{_latents(ours)}: samples of either would be wrong to the other. Take a network of the "
      "same convention, or data and data.records.latents of the network's."
    )
  if config.sigma_data != other.sigma_data:
    raise ValueError(
      f"The network in {workdir} was trained with sigma_data={other.sigma_data}, this run has "
      f"{config.sigma_data}. Set sigma_data={other.sigma_data}."
    )


def _latents(convention: str | None) -> str:
  return f"latents of the convention {convention!r}" if convention else "no latents"


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
  params = _average(config, trained, config.init_from, mesh)
  return grow(net, params, key, f"init_from: {config.init_from.workdir}")


def grow(net: Network, params: Params, key: Array, what: str) -> Params:
  """Another run's weights as those of `net`, or an error that says in which tensors they differ."""
  ours, theirs = _shapes(jax.eval_shape(net.init, key)), _shapes(params)
  if ours == theirs:
    return params
  try:
    return experiment.grow(params, net.init(key))
  except ValueError as error:
    raise ValueError(f"{what} does not fit this network. {error}") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: x.shape for name, x in param_names.by_name(tree).items()}


def sharded(abstract: Any, mesh: Mesh) -> Any:
  """Shapes with the shardings that the arrays are to have."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    sharding.shard_params(abstract, mesh),
  )


def layout(
  config: ConfigDict,
  abstract: TrainState,
  mesh: Mesh,
  meta: dict[str, Any],
  *,
  num_examples: int,
  allow_change: bool = False,
) -> Any:
  """How the state of this run is to be restored, if the stored config is that of this run.

  With `allow_change` it may be another, as long as it makes a state of the same shapes.
  """
  options: dict[str, Any] = dict(num_examples=num_examples, allow_change=allow_change)
  if check_same_run(config, meta, "checkpoints", **options):
    stored = ConfigDict(meta["config"])
    init = experiment.state_init(stored, experiment.network(stored))
    _check_same_shapes(abstract, jax.eval_shape(init, jax.random.key(0)))
  return sharded(abstract, mesh)


def _check_same_shapes(ours: TrainState, theirs: TrainState) -> None:
  """Raises if a changed config makes another state than the one that is stored."""
  now, stored = _shapes(ours), _shapes(theirs)
  differ = [
    f"{name}: {stored.get(name, 'not there')} in the checkpoint, {now.get(name, 'not there')} now"
    for name in sorted(now.keys() | stored.keys())
    if now.get(name) != stored.get(name)
  ]
  if differ:
    raise ValueError(
      f"The changed config makes another state: {len(differ)} arrays differ, such as\n  "
      + "\n  ".join(differ[:5])
      + "\nTake the old values; or another --workdir, and config.init_from to begin with what "
      "was trained here."
    )


def check_same_run(
  config: ConfigDict,
  meta: dict[str, Any],
  what: str = "snapshots",
  *,
  num_examples: int,
  allow_change: bool = False,
) -> dict[str, tuple[Any, Any]]:
  """Raises if what is in the workdir was made with other values than this run's.

  Args:
    config: of this run.
    meta: what is beside the stored state.
    what: is stored, in the plural.
    num_examples: of this run's data: where a file is missing, batches are not those of before.
    allow_change: do not raise.

  Returns:
    {key: (stored, now)} of what is another value now.
  """
  changes = _changes(config, meta, num_examples)
  if changes and not allow_change:
    raise ValueError(
      f"The config does not fit the {what} in the workdir:\n  "
      + "\n  ".join(_sentence(key, *values, what) for key, values in changes.items())
      + "\nTake the old values, another --workdir, or --allow_config_change to go on with the new."
    )
  return changes


def record_changes(
  workdir: Path, config: ConfigDict, restored: checkpoint.Restored, num_examples: int
) -> None:
  """Logs what is other than when the checkpoint was made, and adds a line for it to CHANGES."""
  if not (changes := _changes(config, restored.meta, num_examples)):
    return
  for key, values in changes.items():
    logger.warning("Goes on with a changed config: %s.", _sentence(key, *values, "checkpoints"))
  values = {key: {"old": old, "new": new} for key, (old, new) in changes.items()}
  line = {"step": restored.step, "changes": values}
  with open(workdir / CHANGES, "a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")


def _changes(
  config: ConfigDict, meta: dict[str, Any], num_examples: int
) -> dict[str, tuple[Any, Any]]:
  """{key: (stored, now)} of what may not differ between two sittings of one run, and does."""
  ours, theirs = flat(plain(config)), flat(meta["config"])
  if "num_examples" in meta:  # not beside snapshots, nor older checkpoints
    ours["data (number of examples)"] = num_examples
    theirs["data (number of examples)"] = meta["num_examples"]
  return {
    key: (theirs.get(key, "not set"), ours.get(key, "not set"))
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and not {key, key.split(".")[0]} & set(FREE)
  }


def plain(config: ConfigDict) -> dict[str, Any]:
  """The config as it comes back from a checkpoint: a tuple is a list."""
  return json.loads(json.dumps(config.to_dict()))


def digest(config: ConfigDict) -> str:
  """The sha256 of what makes a run what it is: of a config without the keys in `FREE`."""
  values = flat(plain(config))
  kept = {key: value for key, value in values.items() if not {key, key.split(".")[0]} & set(FREE)}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _sentence(key: str, stored: Any, now: Any, what: str) -> str:
  return f"{key}: {stored} in the {what.removesuffix('s')}, {now} now"
