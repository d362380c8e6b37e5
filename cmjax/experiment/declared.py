"""What every key of a config may be: the annotations of what takes it, found by the names in it.

The ranges stand beside the arguments of the factories (`cmjax.base.ranges`). Here is only who takes
which section; `checked` is the one place where the values of a config are looked at.
"""

import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cmjax import ema, times, weighting
from cmjax.base import parts, ranges, sharding
from cmjax.base.ranges import Dtype, Place, WorkdirOrNone
from cmjax.experiment import evaluation, methods, models, optimizers, run, sampling
from cmjax.experiment.fields import Run
from cmjax.experiment.sections import Section, Settings, arguments, check_section
from cmjax.losses import distribution, lpips
from cmjax.training import optim

# The sections of a config, and those that hold sections alone.
SECTIONS = ("data", "net", "loss", "optim", "ema", "init_from", "teacher", "samplers", "evals")
SECTIONS += ("checkpoint", "mesh")
OF_SECTIONS = ("ema", "samplers", "evals")
BY_NAME = ("loss.weighting",)  # may be the name alone
STORED = {"workdir": WorkdirOrNone, "ema": str}
NAMED = {"name": str}

# What takes the keys of a section: annotations by key, or a factory with annotations.
Taker = Mapping[str, Any] | Callable[..., Any]


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of a config as they are meant: 1e3 of a count is the whole number 1000.

  Raises:
    ValueError: one cannot be meant, in one line with what is allowed. Of a setting that nothing
      declares, one of somebody else's part, it is only asked that a number be finite.
  """
  for key in SECTIONS:
    check_section(config.get(key, {}), key)
    if key in OF_SECTIONS:
      for name, section in config.get(key, {}).items():
        check_section(section, f"{key}.{name}")
  below = {prefix.rstrip(".") for prefix, *_ in _sections(config)}
  below |= {"doctor", *(f"data.{source}" for source in models.SOURCES)}
  return _checked(config, hints(config), below, "")


def _checked(
  section: Mapping[str, Any], known: Mapping[str, Any], below: Container[str], prefix: str
) -> Settings:
  """`known`: annotations of settings; `below`: the paths at which there are sections or nothing."""
  made = Settings({}, prefix)
  for key, value in section.items():
    path = f"{prefix}{key}"
    alone = isinstance(value, str) and path in BY_NAME
    if path in below and value is not None and not alone:
      check_section(value, path)
    if isinstance(value, Mapping):
      if path not in below:  # where a value is meant
        ranges.meant(value, known.get(path, Any), path)
      made[key] = _checked(value, known, below, f"{path}.")
    else:
      made[key] = ranges.meant(value, known.get(path, Any), path)
  return made


def hints(config: Section) -> dict[str, Any]:
  """{a.b.c: annotation} of the settings of a config that something declares.

  Of a config that is not whole, or names what is not there, those that can be found.
  """
  fields = ranges.of(Run)
  found = {".".join(path): fields[field] for field, path in run.NUMBERS.items()}
  for prefix, section, takers in _sections(config):
    for taker in takers:
      known = taker if isinstance(taker, Mapping) else ranges.of(taker)
      found |= {f"{prefix}{key}": known[key] for key in section if key in known}
  return found


def left_out(config: Section) -> dict[str, Any]:
  """{a.b.c: annotation} of the settings that a config leaves at the default of what takes them.

  Of the source that `data.name` names, also those that it needs: it may be one that a flag named.
  """
  found, source = {}, f"data.{_name(_at(config, 'data'))}."
  for prefix, section, takers in _sections(config):
    for taker in takers if section or prefix == source else ():
      if not isinstance(taker, Mapping):
        named = [p for p in arguments(taker) if p.default is not p.empty or prefix == source]
        optional = {p.name for p in named}
        known = ranges.of(taker)
        typed = optional & set(known)
        if prefix != source:
          typed = {key for key in typed if ranges.can_be_typed(known[key])}
        typed -= {"split"}  # of data: whoever reads it says which
        found |= {f"{prefix}{key}": known[key] for key in sorted(typed - set(section))}
  for name in ("", "doctor", "data"):
    there = _at(config, name) if name else config
    for key, hint in run.optional(name).items():
      if key not in there and ranges.can_be_typed(hint):
        found[f"{name}.{key}" if name else key] = hint
  return found


def numbers(config: Section) -> dict[str, Any]:
  """{a.b.c: value} of all numbers of a config, those in tuples too."""

  def walk(section, prefix):
    for key, value in section.items():
      if isinstance(value, Mapping) or hasattr(value, "items"):
        yield from walk(value, f"{prefix}{key}.")
      elif any(_is_number(v) for v in (value if isinstance(value, (list, tuple)) else [value])):
        yield f"{prefix}{key}", value

  return dict(walk(config, ""))


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- who takes which section ---


def _sections(config: Section) -> Iterator[tuple[str, Section, tuple[Taker, ...]]]:
  """(prefix, section, what takes its keys) of every section; what is named last decides."""
  net, data = _at(config, "net"), _at(config, "data")
  yield "net.", net, (models.ABOUT_NETWORK, *_named(models.NETWORKS, net))
  yield "data.", data, (NAMED,)
  for key, section in data.items():
    if not hasattr(section, "items"):
      continue
    if key in models.SOURCES:
      yield f"data.{key}.", section, (models.SOURCES[key],)
    elif _name(data).rpartition(":")[2] == key:
      yield f"data.{key}.", section, _named({}, data)
  if _name(data) in models.SOURCES and _name(data) not in data:
    yield f"data.{_name(data)}.", {}, (models.SOURCES[_name(data)],)
  yield "mesh.", _at(config, "mesh"), (sharding.make_mesh,)
  yield "snapshots.", _at(config, "snapshots"), (optimizers.make_plan,)
  for key in ("teacher", "init_from"):
    yield f"{key}.", _at(config, key), (STORED,)
  yield from _loss(_at(config, "loss"))
  yield from _optimizer(_at(config, "optim"), "optim.")
  for key, section in _each(config, "ema"):
    yield f"ema.{key}.", section, (NAMED, *_named(optimizers.AVERAGES, section))
  for key, section in _each(config, "samplers"):
    yield from _sampler(section, f"samplers.{key}.")
  for key, section in _each(config, "evals"):
    row = evaluation.EVALUATORS.get(_name(section))
    own = (row.arguments_of, row.others) if row else _named({}, section)
    yield f"evals.{key}.", section, (*own, evaluation.ABOUT_EVALUATOR)


def _nothing() -> None:
  """Takes no arguments: the target network that is the student itself."""


def _loss(loss: Section) -> Iterator[tuple[str, Section, tuple[Taker, ...]]]:
  row = methods.METHODS.get(_name(loss))
  yield "loss.", loss, (NAMED, *(row.takes if row else _named({}, loss)))
  targets = {"current": _nothing, "constant": ema.constant, "curriculum": ema.curriculum}
  kinds = {
    "tangent": methods.TANGENTS,
    "curriculum": methods.CURRICULA,
    "pairs": methods.PAIRS,
    "distance": methods.DISTANCES | {"lpips": lpips.distance},
    "target": targets,
    "weighting": {name: getattr(weighting, name) for name in methods.WEIGHTINGS},
    "proposal": methods.PROPOSALS,
  }
  beside = {
    "tangent": ({"dtype": Dtype, "matmul_precision": str | None}, times.binned_lognormal),
    "distance": ({"path": Place},),
  }
  for key, table in kinds.items():
    section = _at(loss, key)
    yield f"loss.{key}.", section, (NAMED, *beside.get(key, ()), *_named(table, section))
  vsd = _at(loss, "vsd")
  fake = _at(vsd, "fake")
  yield "loss.vsd.", vsd, (distribution.loss, times.lognormal)
  yield "loss.vsd.fake.", fake, (times.lognormal,)
  for prefix, section in (("loss.vsd.", vsd), ("loss.vsd.fake.", fake)):
    proposal = _at(section, "proposal")
    yield f"{prefix}proposal.", proposal, (NAMED, *_named(methods.PROPOSALS, proposal))
  yield from _optimizer(_at(fake, "optim"), "loss.vsd.fake.optim.")


def _optimizer(section: Section, prefix: str) -> Iterator[tuple[str, Section, tuple[Taker, ...]]]:
  schedule = _at(section, "schedule")
  table = {**optimizers.OPTAX_OPTIMIZERS, **optimizers.OPTIMIZERS}
  yield prefix, section, (*map(_of_optax, _named(table, section)), optimizers.RATE)
  rates = {name: row[0] for name, row in optimizers.OPTAX_SCHEDULES.items()}
  own = {"constant": optim.constant, "inverse_sqrt": optim.inverse_sqrt}
  named = map(_of_optax, _named(rates | own, schedule))
  yield f"{prefix}schedule.", schedule, (NAMED, *named)


def _of_optax(factory: Callable[..., Any]) -> Mapping[str, Any]:
  """The annotations of a factory; of one of optax's, with the ranges that are here."""
  known = ranges.of(factory)
  if not factory.__module__.startswith("optax"):
    return known
  names = inspect.signature(factory).parameters
  return known | {key: hint for key, hint in optimizers.OPTAX.items() if key in names}


def _sampler(section: Section, prefix: str) -> Iterator[tuple[str, Section, tuple[Taker, ...]]]:
  row = sampling.SAMPLERS.get(_name(section))
  takers = (row.draw, row.times) if row else _named({}, section)
  yield prefix, section, (*takers, sampling.ABOUT_SAMPLER)
  guidance = _at(section, "guidance")
  known = sampling.GUIDANCE.get(_name(guidance), {})
  yield f"{prefix}guidance.", guidance, (NAMED, known)


def _at(section: Section, key: str) -> Section:
  """The section below a key; an empty one where there is none."""
  below = section.get(key)
  return below if isinstance(below, (ConfigDict, Mapping)) else {}


def _name(section: Section) -> str:
  name = section.get("name")
  return name if isinstance(name, str) else ""


def _each(config: Section, key: str) -> Iterator[tuple[str, Section]]:
  return ((name, below) for name, below in _at(config, key).items() if hasattr(below, "items"))


def _named(table: Mapping[str, Any], section: Section) -> tuple[Callable[..., Any], ...]:
  """What a section names, in a table or from outside; nothing where that is not to be had."""
  name = _name(section)
  if name in table:
    return (table[name],)
  if not name or parts.was_handed_in(name) or not parts.is_outside(name):  # asked last: it reads
    return ()
  try:
    return (parts.named(name, "part"),)
  except ValueError:  # whoever takes the section says what is wrong with its name
    return ()
