"""The numbers of a run, checked."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from cmjax.base import ranges, sharding
from cmjax.experiment.fields import Run
from cmjax.experiment.sections import Section, call, pick
from cmjax.training import microbatch

# Where a record has the fields of a `Run`.
NUMBERS = {
  **{key: (key,) for key in ("seed", "total_steps", "batch_size", "sigma_data", "nonfinite")},
  "log_every_steps": ("log_every_steps",),
  "microbatch": ("microbatch",),
  "steps_per_dispatch": ("steps_per_dispatch",),
  "save_every_steps": ("checkpoint", "every_steps"),
  "keep": ("checkpoint", "keep"),
  "asynchronous": ("checkpoint", "asynchronous"),
  "flip": ("data", "flip"),
  "read_threads": ("data", "threads"),
  "prefetch": ("data", "prefetch"),
  "loss_scale": ("optim", "loss_scale"),
  "mesh": ("mesh",),
  "spike_factor": ("doctor", "spike_factor"),
  "on_spike": ("doctor", "on_spike"),
  "probe_every_steps": ("doctor", "probe_every_steps"),
  "stall_seconds": ("doctor", "stall_seconds"),
  "deterministic": ("deterministic",),
}
NONFINITE = ("stop", "skip", "roll_back")
ON_SPIKE = ("warn", "stop", "roll_back")
DOCTOR = ("spike_factor", "on_spike", "probe_every_steps", "stall_seconds")


def run(config: Mapping[str, Any]) -> Run:
  """The numbers of a config."""
  saving = config["checkpoint"]
  made = Run(
    seed=check_seed(config["seed"]),
    total_steps=config["total_steps"],
    batch_size=config["batch_size"],
    sigma_data=config["sigma_data"],
    flip=config["data"].get("flip", False),
    microbatch=config.get("microbatch"),
    steps_per_dispatch=config.get("steps_per_dispatch", 1),
    loss_scale=float(config["optim"].get("loss_scale", 1.0)),
    log_every_steps=config["log_every_steps"],
    save_every_steps=saving["every_steps"],
    keep=saving["keep"],
    asynchronous=saving.get("asynchronous", True),
    nonfinite=pick(NONFINITE, config["nonfinite"], "policy (nonfinite)"),
    mesh=dict(config["mesh"]),
    deterministic=config.get("deterministic", False),
    **_reading(config["data"]),
    **_doctor(config.get("doctor")),
  )
  # On how many devices is asked where they are known.
  microbatch.check(made.batch_size, made.microbatch, 1)
  return made


# Of `config.data`: how each host reads ahead.
READING: dict[str, Any] = {
  "threads": Run._field_defaults["read_threads"],
  "prefetch": Run._field_defaults["prefetch"],
}


def _reading(data: Section) -> dict[str, Any]:
  given = READING | {key: data[key] for key in READING if key in data}
  return {"read_threads": given["threads"], "prefetch": given["prefetch"]}


def check_seed(seed: Any, what: str = "seed") -> int:
  """The seed, if it is one: JAX takes 32 bits of it, so that 2**32 would be 0 again.

  Args:
    seed: of a config or a flag.
    what: it is called, for the error.

  Raises:
    ValueError: it is no integer from 0 to 2**32 - 1.
  """
  return ranges.meant(seed, ranges.Seed, what)


def make_mesh(run: Run, devices: list[Any] | None = None) -> Mesh:
  """The mesh of a run, over these devices or all that there are."""
  over = {} if devices is None else {"devices": devices}
  return call(sharding.make_mesh, "mesh", **over, **run.mesh)


def check(run: Run, every_steps: Mapping[str, int]) -> None:
  """Raises for numbers that cannot be meant, and for intervals that a dispatch passes over.

  Args:
    run: the numbers.
    every_steps: {key of the config: interval} of the evaluators.
  """
  hints = ranges.of(Run)
  for field, value in run._asdict().items():
    ranges.meant(value, hints[field], ".".join(NUMBERS[field]))
  num_steps = run.steps_per_dispatch
  intervals = {
    "total_steps": run.total_steps or num_steps,  # 0: a run that was converted
    "log_every_steps": run.log_every_steps,
    "checkpoint.every_steps": run.save_every_steps,
    **every_steps,
    "doctor.probe_every_steps": run.probe_every_steps or num_steps,
  }
  for key, value in intervals.items():
    if ranges.meant(value, ranges.Count, key) % num_steps:
      raise ValueError(
        f"{key}={value} must be a multiple of steps_per_dispatch={num_steps}: nothing happens "
        "within a dispatch. Change one of them."
      )


def _doctor(section: Section | None) -> dict[str, Any]:
  """What `config.doctor` sets."""
  found = dict(section or {})
  if unknown := sorted(set(found) - set(DOCTOR)):
    raise ValueError(f"config.doctor has {', '.join(unknown)}. It knows: {', '.join(DOCTOR)}.")
  if "on_spike" in found:
    pick(ON_SPIKE, found["on_spike"], "policy (doctor.on_spike)")
  return found


def optional(section: str) -> dict[str, Any]:
  """{key: annotation} of the numbers of a run that a section, or the page itself, may leave out."""
  hints, has_default = ranges.of(Run), Run._field_defaults
  return {
    path[-1]: hints[field]
    for field, path in NUMBERS.items()
    if field in has_default and path[:-1] == ((section,) if section else ())
  }
