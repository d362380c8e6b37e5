"""Runs on disk as others use them: to go on with, to distil, to start from, to guide with.

An average that `python -m cmjax.ema` made has a name like the others: posthoc_0.050 is the one of
sigma_rel 0.05 at the latest step that it was made for, posthoc_0.050_step4096 the one at that step.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from cmjax import experiment, pages
from cmjax.base import digests, json_files, param_names, paths, sharding
from cmjax.data import sources
from cmjax.experiment import Described, Experiment, Samples, Stored
from cmjax.program import identity
from cmjax.run import checkpoint, snapshots
from cmjax.training.step import TrainState
from cmjax.types import Array, Model, Network, Params

logger = logging.getLogger("cmjax")

_POSTHOC = re.compile(r"posthoc_(\d*\.?\d+)(?:_step(\d+))?")


class Snapshots(NamedTuple):
  """The stored copies of a run's averages."""

  run: Described
  emas: dict[int, dict[str, float]]  # {step: {ema name: sigma_rel}}, by rising step
  read: Callable[[int], dict[str, Params]]  # step -> {ema name: params}, as they were stored


class Trained(NamedTuple):
  """What another run left: what it says of its network, averages of it, and their step."""

  run: Described
  averages: dict[str, Params]  # {ema name: params of the network}
  step: int


def read_record(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """The config that a run had when it last started, as plain data."""
  path = paths.place(workdir) / "config.json"
  if not path.is_file():
    raise ValueError(f"No config.json in {workdir}: train first, or correct the path of the run.")
  try:
    record = json_files.read(path)
    if not isinstance(record, dict):
      raise ValueError("it is no object of JSON")
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}): give --config, which is compared with the run's checkpoint."
    ) from None
  return record


def read_trained_record(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """The config of a run's newest checkpoint, to sample and score it with.

  Samplers, evaluators and what else may change are those of config.json. Where that file says
  something else of the run itself, the checkpoint is believed, and a line says so.
  """
  record, folder = read_record(workdir), paths.place(workdir) / "checkpoints"
  meta = _newest_meta(workdir) if folder.is_dir() else None
  if meta is None:
    return record
  every = identity.config_changes(record, meta["config"], free=())
  fixed = identity.config_changes(record, meta["config"])
  for changes, whose in (
    ({key: every[key] for key in every if key not in fixed}, "config.json's values are taken"),
    (fixed, "the checkpoint's values are taken"),
  ):
    if changes:
      told = ", ".join(f"{key}: {now}, there {old}" for key, (old, now) in [*changes.items()][:4])
      message = "config.json in %s differs from the config of the newest checkpoint (%s): %s."
      logger.warning(message, workdir, told, whose)
  if not fixed:
    return record
  return {**meta["config"], **{key: record[key] for key in identity.FREE if key in record}}


def _newest_meta(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """What is beside the newest checkpoint that can be read; None where none can.

  Raises:
    ValueError: there is no folder of checkpoints.
  """
  stored = checkpoint.Checkpoints(paths.place(workdir), read_only=True)
  with contextlib.closing(stored):
    for step in stored.steps():
      with contextlib.suppress(Exception):  # damaged, which is told where it is read
        return stored.meta(step)
  return None


def read_experiment(workdir: str | os.PathLike[str]) -> Experiment:
  """The experiment of a run, of the config that it had when it last started."""
  return experiment.parse(read_record(workdir))


def load_state(
  workdir: str | os.PathLike[str], mesh: Mesh, exp: Experiment | None = None
) -> checkpoint.Restored:
  """The newest good checkpoint of a run, laid out on `mesh`; the run is not changed by it.

  Args:
    workdir: of the run.
    mesh: where its arrays go.
    exp: the run's experiment, where parts of it were handed in from Python.
  """

  def layout(meta):
    init = experiment.state_init(exp or experiment.parse(meta["config"]))
    return sharded(jax.eval_shape(init, jax.random.key(0)), mesh)

  return checkpoint.read(paths.place(workdir), layout)


def average_names(record: Mapping[str, Any]) -> list[str]:
  """The averages that a run's checkpoints have."""
  target = (record["loss"].get("target") or {"name": "current"})["name"]
  return [*record["ema"], *(["target"] if target != "current" else [])]


def averages_of(workdir: str | os.PathLike[str]) -> list[str]:
  """The averages of a run's config, in its order, by its newest checkpoint that says so."""
  meta = _newest_meta(workdir)
  if meta is None:
    raise ValueError(f"{workdir} has no complete checkpoint yet: train that run first.")
  return list(meta["config"]["ema"])


def load_network(
  workdir: str | os.PathLike[str],
  mesh: Mesh,
  *,
  emas: Sequence[str] | None = None,
  network: Network | None = None,
  check: Callable[[Mapping[str, Any]], Any] = lambda meta: None,
) -> Trained:
  """A run's network with some of its averages, from its newest good checkpoint.

  Nothing else of the checkpoint is read: no optimizer's moments, no other average.

  Args:
    workdir: of the run, which is not changed by it.
    mesh: where the weights go.
    emas: names of averages, post-hoc ones among them; None: all of the checkpoint.
    network: the run's own, where it was handed in from Python.
    check: is given {config, identity, ...} beside the weights, before they are read; it may raise.
  """
  described = None

  def layout(meta):
    nonlocal described
    check(meta)
    described = experiment.describe(meta["config"], network)
    there = average_names(meta["config"])
    if emas is None:
      stored = there
    else:
      stored = [name for name in emas if name in there or not _POSTHOC.fullmatch(name)]
    for name in stored:
      experiment.pick(there, name, f"average (ema) of {workdir}")
    shapes = jax.eval_shape(described.network.init, jax.random.key(0))
    # One average at least: a partial read of nothing is none.
    names = list(dict.fromkeys(stored)) or there[:1]
    return {"ema": {name: sharded(shapes, mesh) for name in names}}

  restored = checkpoint.read(paths.place(workdir), layout, partial=True)
  assert described is not None, "a checkpoint that was read had a layout"
  return Trained(described, restored.state["ema"], restored.step)


class Loaded(NamedTuple):
  """A model of another run, and what that run says of it; None where it was handed in."""

  model: Model
  run: Described | None
  weights: Mapping[str, Any] | None = None  # their step and digest, of `weights_of`


def load_model(fits: Experiment, stored: Stored, mesh: Mesh, key: str) -> Loaded:
  """The network and the average of another run, which must fit this run's data.

  Args:
    fits: this run's experiment.
    stored: the other run.
    mesh: where the weights go.
    key: of the config, that names the other run: for messages.
  """
  check_trained(stored.workdir, key)
  described, params, step = load_average(stored.workdir, stored.ema, mesh)
  _check_relative(fits, described, stored.workdir)
  weights = weights_of(stored.workdir, step, stored.ema)
  return Loaded((described.network, params), described, weights)


def check_trained(workdir: str, key: str) -> None:
  """Raises where a run is needed that was not trained yet, with the command that trains it."""
  if _has_checkpoints(paths.place(workdir, key)):
    return
  command = pages.command_for(workdir)
  advice = f"Make it first: {command}" if command else "Train that run first"
  others = f"or name another run: --config.{key}=DIR"
  if key == "init_from.workdir":
    others += f"; --config.{key}= starts from random weights, which is another experiment"
  raise ValueError(
    f"{key}={workdir} has no checkpoints: there is no trained run. {advice}; {others}."
  )


def check_start(exp: Experiment, workdir: epath.Path) -> None:
  """Raises early where a run that is about to begin lacks the run that it starts from.

  A run that has checkpoints goes on without it.
  """
  wanted = exp.init_from
  if isinstance(wanted, Stored) and not _has_checkpoints(workdir):
    check_trained(wanted.workdir, "init_from.workdir")


def _has_checkpoints(workdir: epath.Path) -> bool:
  folder = workdir / "checkpoints"
  return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def weights_of(workdir: str | os.PathLike[str], step: int, ema: str = "") -> dict[str, Any]:
  """By what stored weights are known: their step, and a digest of the checkpoint's files.

  Args:
    workdir: of the run.
    step: of the checkpoint.
    ema: the average's name, where it may be a post-hoc one.
  """
  wanted, run = _POSTHOC.fullmatch(ema), paths.place(workdir)
  if wanted and posthoc_folder(workdir, float(wanted[1])).is_dir():
    run = posthoc_folder(workdir, float(wanted[1]))
  folder = run / "checkpoints" / str(step) / "state"
  return {"step": step, "digest": digests.of_folder(folder) if folder.is_dir() else None}


def newest_weights(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
  """`weights_of` the newest checkpoint; None where there is none."""
  if not (paths.place(workdir) / "checkpoints").is_dir():
    return None
  stored = checkpoint.Checkpoints(paths.place(workdir), read_only=True)
  with contextlib.closing(stored):
    steps = stored.steps()
  return weights_of(workdir, steps[0]) if steps else None


def kept(workdir: epath.Path, data: Callable[[], sources.Source]) -> experiment.Kept:
  """Where a run keeps references of its training data, by the digest of these."""
  return experiment.Kept(workdir, functools.cache(lambda: identity.of_data(data())["digest"]))


def load_average(
  workdir: str | os.PathLike[str],
  name: str,
  mesh: Mesh,
  network: Network | None = None,
  check: Callable[[Mapping[str, Any]], Any] = lambda meta: None,
) -> tuple[Described, Params, int]:
  """An average of a run by its name, of its checkpoint or a post-hoc one, and the step it is of."""
  wanted = _POSTHOC.fullmatch(name)
  trained = load_network(workdir, mesh, emas=(name,), network=network, check=check)
  if name in trained.averages or wanted is None:
    return trained.run, trained.averages[name], trained.step
  folder = posthoc_folder(workdir, float(wanted[1]))
  if not folder.is_dir():
    raise ValueError(
      f"There is no average {name!r} in {workdir}. To make it: "
      f"python -m cmjax.ema --workdir={workdir} --sigma_rel={wanted[1]}"
    )
  shapes = jax.eval_shape(trained.run.network.init, jax.random.key(0))
  stored = checkpoint.Checkpoints(folder, read_only=True)
  with contextlib.closing(stored):
    step = int(wanted[2]) if wanted[2] else max(stored.steps(), default=0)
    layout = lambda meta: {"params": sharded(shapes, mesh)}
    return trained.run, stored.load(step, layout).state["params"], step


def load_averages(
  workdir: str | os.PathLike[str],
  names: Collection[str],
  mesh: Mesh,
  network: Network | None = None,
  check: Callable[[Mapping[str, Any]], Any] = lambda meta: None,
) -> Trained:
  """A run's network with the averages of these names, post-hoc ones among them."""
  emas = tuple(dict.fromkeys(names))
  trained = load_network(workdir, mesh, emas=emas, network=network, check=check)
  others = {
    name: load_average(workdir, name, mesh, network)[1]
    for name in dict.fromkeys(names)
    if name not in trained.averages
  }
  return trained._replace(averages=trained.averages | others)


def length(sigma_rel: float) -> str:
  """A length of averages as it is in names: 0.050, 0.1235."""
  whole, digits = f"{sigma_rel:.6f}".split(".")
  return f"{whole}.{digits[:3]}{digits[3:].rstrip('0')}"


def posthoc_folder(workdir: str | os.PathLike[str], sigma_rel: float) -> epath.Path:
  """Where the post-hoc averages of one length are: checkpoints, by the steps that they are of."""
  return paths.place(workdir) / "posthoc" / f"sigma_rel_{length(sigma_rel)}"


@contextlib.contextmanager
def open_snapshots(
  workdir: str | os.PathLike[str], mesh: Mesh, network: Network | None = None
) -> Iterator[Snapshots]:
  """The stored copies of a run's averages, laid out on `mesh` when they are read."""
  path = paths.place(workdir)
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
    described = experiment.describe(metas[max(metas)]["config"], network)
    shapes = jax.eval_shape(described.network.init, jax.random.key(0))

    def layout(meta):
      copy = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, meta["dtype"]), shapes)
      return sharded({name: copy for name in meta["emas"]}, mesh)

    emas = {step: dict(meta["emas"]) for step, meta in metas.items()}
    yield Snapshots(described, emas, lambda step: stored.load(step, layout).state)


def load_teacher(exp: Experiment, mesh: Mesh) -> Loaded | None:
  """The frozen model that a method distils: read once, that average alone; None without."""
  teacher = exp.teacher
  if teacher is None:
    return None
  if not isinstance(teacher, Stored):
    network, params = teacher
    weights = {"step": None, "digest": digests.of_arrays(param_names.by_name(params))}
    return Loaded((network, _placed(params, mesh)), None, weights)
  loaded = load_model(exp, teacher, mesh, "teacher.workdir")
  assert loaded.run is not None, "it was just read"
  if exp.method.teacher_needs_no_class and not loaded.run.label_dropout:
    raise ValueError(
      f"loss.guidance asks the teacher in {teacher.workdir} for its prediction without a "
      "class, but it was trained with loss.label_dropout=0: train one with 0.1, or drop guidance."
    )
  return loaded


def _placed(params: Params, mesh: Mesh) -> Params:
  """Weights that were handed in, wherever they are, laid out on the mesh."""
  return jax.device_put(params, sharding.shard_params(params, mesh))


def load_guides(exp: Experiment, mesh: Mesh) -> dict[str, Loaded]:
  """The weaker models of the samplers under autoguidance, by the sampler's key."""
  guides = {key: s.guide for key, s in exp.samplers.items() if s.guide is not None}
  where = "samplers.{}.guidance.workdir"
  return {key: load_model(exp, guide, mesh, where.format(key)) for key, guide in guides.items()}


def models(loaded: Mapping[str, Loaded]) -> dict[str, Model]:
  """The networks and weights alone."""
  return {key: one.model for key, one in loaded.items()}


def _check_relative(exp: Experiment, other: Described, workdir: str) -> None:
  """Raises if a teacher's data scale or shape are others than this run's."""
  ours, theirs = exp.samples, other.samples
  sizes, others = _sizes(ours), _sizes(theirs)
  for key in sizes:
    if sizes[key] != others[key]:
      stored = others[key] or other.record["net"].get(key)  # 0 may be no key at all
      raise ValueError(
        f"The network in {workdir} has net.{key}={stored}, this run has "
        f"{sizes[key]}. Take one that was trained on the same data."
      )
  if ours.latents != theirs.latents:
    raise ValueError(
      f"The network in {workdir} was trained on {_latents(theirs.latents)}, this run is for "
      f"{_latents(ours.latents)}: samples of either would be wrong to the other. Take a network of "
      "the same convention, or data and data.records.latents of the network's."
    )
  if exp.run.sigma_data != other.run.sigma_data:
    raise ValueError(
      f"The network in {workdir} was trained with sigma_data={other.run.sigma_data}, this run has "
      f"{exp.run.sigma_data}. Set sigma_data={other.run.sigma_data}."
    )


def _sizes(samples: Samples) -> dict[str, Any]:
  """What one sample is, by the keys that a config has for it."""
  shape = samples.shape
  image, points = (shape, (None,)) if len(shape) == 3 else ((None,) * 3, shape)
  sizes = dict(resolution=image[0], in_channels=image[2], dim=points[0])
  return sizes | {"num_classes": samples.num_classes, "shape": tuple(shape)}


def _latents(convention: str | None) -> str:
  return f"latents of the convention {convention!r}" if convention else "no latents"


def first_weights(
  exp: Experiment, key: Array, mesh: Mesh, teacher: Loaded | None = None
) -> Params | None:
  """The weights that `init_from` names, grown to this network; None: random ones.

  A part that this network has beside (guidance, segment) starts at zero, so that the network starts
  as the one that it comes from. Where they are the teacher's, they are not read again.
  """
  wanted = exp.init_from
  if wanted is None:
    return None
  if not isinstance(wanted, Stored):
    params = _placed(wanted[1], mesh)
    return grow(exp.network, params, key, "init_from: the model that was handed in")
  same = teacher is not None and wanted == exp.teacher
  start = "init_from.workdir"
  loaded = teacher if teacher and same else load_model(exp, wanted, mesh, start)
  params = loaded.model[1]
  theirs_record = loaded.run.record if loaded.run else exp.record
  # With the same shapes: nothing but the samples would show it.
  for name, default in (("preconditioning", "trigflow"), ("embedding", "positional")):
    ours, theirs = (r["net"].get(name, default) for r in (exp.record, theirs_record))
    if ours != theirs:
      raise ValueError(
        f"init_from: the network in {wanted.workdir} has net.{name}={theirs!r}, this run "
        f"has {ours!r}: its weights would mean something else. Set net.{name}={theirs!r}."
      )
  return grow(exp.network, params, key, f"init_from: {wanted.workdir}")


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
  exp: Experiment,
  abstract: TrainState,
  mesh: Mesh,
  meta: dict[str, Any],
  *,
  known: Mapping[str, Any],
  allow_change: bool = False,
) -> Any:
  """How the state of this run is to be restored, if the stored config is that of this run.

  With `allow_change` it may be another, as long as it makes a state of the same shapes. `known` is
  the run's identity, and what is compared with the one beside the state.
  """
  record = experiment.stored_record(exp)
  identity.check_same_run(record, meta, "checkpoints", identity=known, allow_change=allow_change)
  if identity.config_changes(record, meta["config"]):
    init = experiment.state_init(experiment.parse(meta["config"]))
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
