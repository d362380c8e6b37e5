"""Optimizers, learning rates and averages of a config."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import optax
import optax.contrib

from cmjax import ema
from cmjax.base import parts, ranges
from cmjax.base.ranges import Count, CountOrNone, NonNegative, Positive, Range, Share
from cmjax.experiment.sections import Section, call, pick, pick_part, read
from cmjax.run.snapshots import DTYPES, Plan
from cmjax.training import optim


def _first_argument(function: Any) -> str:
  try:
    return next(iter(inspect.signature(function).parameters), "")
  except (TypeError, ValueError):  # a builtin, a type alias
    return ""


def _optax_optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Every optimizer of optax, by its name there: the functions that begin with a learning rate."""
  return {
    name: function
    for module in (optax.contrib, optax)
    for name, function in vars(module).items()
    if inspect.isfunction(function) and _first_argument(function) == "learning_rate"
  }


def _optax_schedules() -> dict[str, tuple[Callable[..., optax.Schedule], str]]:
  """Every schedule of optax, and the argument that is its highest value, which is `lr`."""
  found = {}
  for name, function in vars(optax.schedules).items():
    if name.endswith("_schedule") and inspect.isfunction(function):
      names = inspect.signature(function).parameters
      highest = next((key for key in ("peak_value", "init_value", "value") if key in names), None)
      if highest:
        found[name] = function, highest
  return found


SCHEDULES = {"constant": optim.constant, "inverse_sqrt": optim.inverse_sqrt}
OPTIMIZERS = {"adam": optim.adam, "radam": optim.radam}  # as the papers have them
# The ranges of what these and optax's take; of an argument that is not here, any finite number.
RATE: dict[str, Any] = {
  "name": str,
  "lr": NonNegative,
  "clip_norm": ranges.of(optim.adam)["clip_norm"],
}
OPTAX: dict[str, Any] = {
  **{key: Share for key in ("b1", "b2", "b3", "beta1", "beta2", "decay")},
  **{key: Positive for key in ("eps", "decay_rate", "power", "exponent", "peak_value")},
  **{key: NonNegative for key in ("eps_root", "weight_decay", "alpha", "end_value", "init_value")},
  "momentum": Annotated[float | None, Range(0, 1, "[)")],
  "decay_steps": Count,
  **{key: CountOrNone for key in ("warmup_steps", "transition_steps", "transition_begin")},
}
OPTAX_SCHEDULES, OPTAX_OPTIMIZERS = _optax_schedules(), _optax_optimizers()
AVERAGES = {"half_life": ema.half_life, "constant": ema.constant, "power": ema.power}


def schedule(section: Section, what: str = "optim") -> optax.Schedule:
  """The learning rate by step, of an optimizer's section."""
  _, lr, wanted, _ = read(section, what, "lr", "schedule")
  name, kwargs = read(wanted, f"{what}.schedule")
  if name in OPTAX_SCHEDULES and name not in SCHEDULES:
    function, highest = OPTAX_SCHEDULES[name]
    if highest in kwargs:
      raise ValueError(f"{what}.schedule ({name}): its {highest} is {what}.lr. Drop one of them.")
    return call(function, f"{what}.schedule ({name})", **{highest: lr}, **kwargs)
  factory = pick_part(SCHEDULES, name, f"schedule ({what}.schedule.name)")
  return call(factory, f"{what}.schedule ({name})", lr, **kwargs)


def chain(
  section: Section, what: str, *others: str
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer of a section and its learning rate; the keys `others` are somebody else's.

  Beside ours it is any optimizer of optax, with the arguments that it has there. `clip_norm` clips
  the global norm of the gradient first, whatever the optimizer.
  """
  if parts.was_handed_in(section.get("name")):
    refuse = parts.missing(section["name"], "tx")
    rate = schedule(section, what) if "lr" in section else refuse
    return optax.GradientTransformation(refuse, refuse), rate
  name, _, _, kwargs = read(section, what, "lr", "schedule")
  kwargs = {key: value for key, value in kwargs.items() if key not in others}
  rate = schedule(section, what)
  if name in OPTIMIZERS or name not in OPTAX_OPTIMIZERS:
    factory = pick_part(OPTIMIZERS, name, f"optimizer ({what}.name)")
    return call(factory, f"{what} ({name})", rate, **kwargs), rate
  clip_norm = kwargs.pop("clip_norm", None)
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  tx = call(OPTAX_OPTIMIZERS[name], f"{what} ({name})", rate, **kwargs)
  return optax.chain(*clip, tx), rate


def averages(section: Section, batch_size: int) -> dict[str, ema.Decay]:
  """The averages of `config.ema`, by name."""
  if not section:
    raise ValueError("config.ema needs at least one average: samples are drawn from averages.")
  return {label: _average(part, label, batch_size) for label, part in section.items()}


def _average(section: Section, label: str, batch_size: int) -> ema.Decay:
  if parts.was_handed_in(section.get("name")):
    return parts.missing(section["name"], "averages", f"average {label}")
  name, kwargs = read(section, f"ema.{label}")
  factory = pick_part(AVERAGES, name, f"average (ema.{label}.name)")
  if "batch_size" in inspect.signature(factory).parameters:
    kwargs["batch_size"] = batch_size
  return call(factory, f"ema.{label} ({name})", **kwargs)


def snapshots(section: Section | None, averages: Mapping[str, Section]) -> Plan | None:
  """What `config.snapshots` (every_steps, emas, dtype) asks for; None where there is none."""
  if not section:
    return None
  return call(functools.partial(make_plan, averages), "snapshots", **dict(section))


def make_plan(
  averages: Mapping[str, Section],
  *,
  every_steps: Count,
  emas: tuple[str, ...],
  dtype: str = "float16",
) -> Plan:
  """Which of a config's averages are stored as snapshots, and when."""
  pick(DTYPES, dtype, "dtype (snapshots.dtype)")
  sections = {name: pick(averages, name, "average (snapshots.emas)") for name in emas}
  power = [name for name, section in averages.items() if section["name"] == "power"]
  if not sections or not set(sections) <= set(power):
    raise ValueError(
      f"snapshots.emas={tuple(emas)} must name averages of the kind 'power': only these can be "
      f"turned into other lengths later. This config has: {', '.join(power) or 'none'}."
    )
  lengths = {name: float(section["sigma_rel"]) for name, section in sections.items()}
  if len(set(lengths.values())) < len(lengths):
    raise ValueError(f"snapshots.emas: two of one length tell nothing more than one: {lengths}.")
  return Plan(every_steps, lengths, dtype)
