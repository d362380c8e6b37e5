"""From a config to an `Experiment`, once."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cmjax.base import parts
from cmjax.experiment import declared, evaluation, methods, models, optimizers, sampling, state
from cmjax.experiment import run as runs
from cmjax.experiment.fields import Experiment, Run, Samples, Stored
from cmjax.experiment.sections import Section, Settings, lacks_input
from cmjax.types import Network

KEYS = (
  *("seed", "total_steps", "batch_size", "sigma_data", "data", "net", "loss", "optim", "ema"),
  *("init_from", "teacher", "samplers", "evals", "log_every_steps", "checkpoint", "mesh"),
  "nonfinite",
)  # and what may be left out: snapshots, microbatch, steps_per_dispatch, doctor


def parse(config: ConfigDict | Mapping[str, Any]) -> Experiment:
  """Everything a program needs, of a config: each part is checked and built here, and only here.

  Nothing is read from disk: data, teachers and weights are opened by those who need them.

  Args:
    config: as in `configs/`, or a record of one.

  Raises:
    ValueError: a part is missing, unknown, or takes other arguments; a value cannot be meant.
  """
  record = _plain(config)
  if missing := [key for key in KEYS if key not in record]:
    raise ValueError(f"The config needs {', '.join(KEYS)}; not there: {', '.join(missing)}.")
  record = declared.checked(record)
  run = runs.run(record)
  network = models.network(record["net"], run.sigma_data)
  samples = models.samples(record["net"], record["data"])
  scene = methods.Scene(run.sigma_data, samples.shape, run.total_steps)
  method = methods.method(scene, record["loss"])
  tx, schedule = optimizers.chain(record["optim"], "optim", "loss_scale")
  loss, evals = record["loss"], record["evals"]
  trained = sampling.Trained(
    run.sigma_data,
    samples,
    network.inputs,
    method,
    sigma_min=loss.get("sigma_min", 0.0) or 0.0,
    num_segments=loss.get("num_segments", 1) or 1,
  )
  samplers = {key: sampling.sampler(trained, key, s) for key, s in record["samplers"].items()}
  evaluators = {key: evaluation.evaluator(key, s, samples) for key, s in evals.items()}
  made = Experiment(
    network=network,
    method=method,
    samples=samples,
    source=models.source(record["data"], run.sigma_data),
    tx=tx,
    schedule=schedule,
    averages=optimizers.averages(record["ema"], run.batch_size),
    samplers=samplers,
    evaluators=evaluators,
    run=run,
    teacher=_stored(record["teacher"]),
    init_from=_stored(record["init_from"]),
    snapshots=optimizers.snapshots(record.get("snapshots"), record["ema"]),
    record=record,
  )
  return made._replace(parsed={name: getattr(made, name) for name in PARTS})


PARTS = ("network", "method", "source", "tx", "schedule", "samplers", "evaluators", "averages")
# Where the record says what a part is.
SECTIONS = {"network": "net", "method": "loss", "source": "data", "tx": "optim"}
# What a section says of other things than the part that it names.
_KEPT = {
  "network": ("resolution", "in_channels", "dim", "shape", "num_classes", "guidance", "segment"),
  "method": ("sigma_min", "num_segments"),
  "source": ("flip", "threads", "prefetch"),
  "tx": ("lr", "schedule", "loss_scale"),
}


def check(experiment: Experiment) -> None:
  """Raises where the parts of an experiment do not fit each other. `train` and `plan` ask."""
  method, name = experiment.method, experiment.method.name
  runs.check(
    experiment.run,
    {f"evals.{key}.every_steps": e.every_steps for key, e in experiment.evaluators.items()},
  )
  if method.distils and experiment.teacher is None:
    raise ValueError(f"loss.name={name!r} distils a teacher: set teacher.workdir to its workdir.")
  for part in method.needs:
    if part not in experiment.network.inputs:
      raise lacks_input(part)
  state.decays(experiment)
  if not experiment.averages:
    raise ValueError("config.ema needs at least one average: samples are drawn from averages.")


def stored_record(experiment: Experiment) -> dict[str, Any]:
  """The record of an experiment as it is now: of its numbers, and of parts that were handed in.

  A part that was handed in from Python is named "python:package.module:Name" there, so that a
  program that finds the record says what it lacks, and builds nothing else in its place.
  """
  record = _plain(experiment.record)
  parsed_run = runs.run(record) if record else None
  for field, path in runs.NUMBERS.items():
    value = getattr(experiment.run, field)
    if parsed_run is None or value != getattr(parsed_run, field):
      _put(record, path, value)
  for key in ("teacher", "init_from"):
    stored, section = getattr(experiment, key), record.setdefault(key, {"ema": "main"})
    section |= stored._asdict() if isinstance(stored, Stored) else {"workdir": ""}
  for part, section in SECTIONS.items():
    given = getattr(experiment, part)
    if given is not experiment.parsed.get(part):
      own = getattr(given, "name", "") or parts.name_of(getattr(given, "apply", given))
      record[section] = _handed_in(experiment, part, record.get(section, {}), own)
  _record_named(experiment, record)
  return record


def _handed_in(
  experiment: Experiment, part: str, before: Mapping[str, Any], own: str
) -> dict[str, Any]:
  """The section of a part that was handed in, with what it said of other things."""
  name, samples = f"{parts.HANDED_IN}{own}", experiment.samples
  kept = {key: before[key] for key in _KEPT[part] if key in before}
  if part == "network":
    kept = kept or {"shape": samples.shape, "num_classes": samples.num_classes}
    kept |= {key: True for key in experiment.network.inputs if key in _KEPT[part]}
  elif part == "method":
    dropout = experiment.method.label_dropout
    kept |= {"label_dropout": dropout} if dropout else {}
    kept |= {"target": {"name": name}} if experiment.method.target else {}
  elif part == "source" and samples.latents:
    kept[name] = {"latents": samples.latents, "vae": samples.vae}
  elif part == "tx" and experiment.schedule is not experiment.parsed.get("schedule"):
    kept = {key: value for key, value in kept.items() if key == "loss_scale"}
  return {**kept, "name": name}


def _record_named(experiment: Experiment, record: dict[str, Any]) -> None:
  """The averages, samplers and evaluators, where there are others than the record has."""

  def sections(part, key, of_own):
    given, parsed = getattr(experiment, part), experiment.parsed.get(part)
    there = record.get(key) or {}
    if given is not parsed:
      same = lambda name: parsed and name in there and given[name] is parsed.get(name)
      record[key] = {n: there[n] if same(n) else of_own(one) for n, one in given.items()}

  named = lambda thing: {"name": f"{parts.HANDED_IN}{parts.name_of(thing)}"}
  sections("averages", "ema", named)
  sections("samplers", "samplers", lambda one: _plain(one.record) or named(one.draw))
  when = ("samplers", "emas", "every_steps", "at_start")
  about = lambda one: {key: getattr(one, key) for key in when}
  sections("evaluators", "evals", lambda one: about(one) | named(one.open))


def handed_in(record: Mapping[str, Any], part: str) -> bool:
  """Whether a record says that this part was handed in from Python."""
  return parts.was_handed_in(record[SECTIONS[part]]["name"])


class Described(NamedTuple):
  """What others want to know of a run to use its network: no data, loss or optimizer."""

  network: Network
  samples: Samples
  run: Run
  label_dropout: float
  record: Mapping[str, Any]


def describe(record: Mapping[str, Any], network: Network | None = None) -> Described:
  """The network of a stored run, from its record alone.

  Args:
    record: of the run.
    network: the run's own, where it was handed in from Python.
  """
  record = _plain(record)
  used = {key: record[key] for key in ("sigma_data", "net", "data") if key in record}
  record = Settings({**record, **declared.checked(used)})
  run = runs.run(record)
  if network is None or not handed_in(record, "network"):
    network = models.network(record["net"], run.sigma_data)
  dropout = record["loss"].get("label_dropout", 0.0)
  return Described(network, models.samples(record["net"], record["data"]), run, dropout, record)


def _stored(section: Section) -> Stored | None:
  return Stored(section["workdir"], section["ema"]) if section["workdir"] else None


def _put(record: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  *above, key = path
  for name in above:
    if record.get(name) is None:
      record[name] = {}
    record = record[name]
  record[key] = value


def _plain(config: Any, path: str = "") -> Any:
  """A config as dicts; what was stored as JSON has tuples again."""
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  if isinstance(config, Mapping):
    if odd := [key for key in config if not isinstance(key, str) or not key.isprintable()]:
      raise ValueError(f"config.{path}{odd[0]!r}: the name of a setting has letters alone.")
    plain = {key: _plain(value, f"{path}{key}.") for key, value in config.items()}
    return Settings(plain, path)
  return tuple(map(_plain, config)) if isinstance(config, (list, tuple)) else config


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record as it comes back from a checkpoint: a tuple is a list."""
  return json.loads(json.dumps(record))
