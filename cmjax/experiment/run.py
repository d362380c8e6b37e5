"""The numbers of a run, checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cmjax.base import sharding
from cmjax.experiment.fields import Run
from cmjax.experiment.sections import Section, call, pick
from cmjax.training import microbatch

NONFINITE = ("stop", "skip", "roll_back")
ON_SPIKE = ("warn", "stop", "roll_back")
DOCTOR: dict[str, Any] = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)


def run(config: Mapping[str, Any]) -> Run:
  """The numbers of a config, or an error for those that cannot be."""
  saving = config["checkpoint"]
  made = Run(
    seed=check_seed(config["seed"]),
    total_steps=config["total_steps"],
    batch_size=config["batch_size"],
    sigma_data=config["sigma_data"],
    flip=config["data"].get("flip", False),
    microbatch=config.get("microbatch"),
    steps_per_dispatch=config.get("steps_per_dispatch", 1),
    loss_scale=_loss_scale(config["optim"]),
    log_every_steps=config["log_every_steps"],
    save_every_steps=saving["every_steps"],
    keep=saving["keep"],
    asynchronous=saving.get("asynchronous", True),
    nonfinite=pick(NONFINITE, config["nonfinite"], "policy (nonfinite)"),
    mesh=dict(config["mesh"]),
    **_doctor(config.get("doctor")),
  )
  # On how many devices is asked where they are known.
  microbatch.check(made.batch_size, made.microbatch, 1)
  return made


def check_seed(seed: Any, what: str = "seed") -> int:
  """The seed, if it is one: JAX takes 32 bits of it, so that 2**32 would be 0 again.

  Args:
    seed: of a config or a flag.
    what: it is called, for the error.

  Raises:
    ValueError: it is no integer from 0 to 2**32 - 1.
  """
  whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
  if not whole or not 0 <= seed < 2**32:
    raise ValueError(
      f"{what}={seed!r} must be an integer from 0 to 2**32 - 1 = {2**32 - 1}: of others JAX takes "
      "the last 32 bits, and the noise would be that of another seed. Choose one in this range."
    )
  return int(seed)


def make_mesh(run: Run, devices: list[Any] | None = None) -> Mesh:
  """The mesh of a run, over these devices or all that there are."""
  over = {} if devices is None else {"devices": devices}
  return call(sharding.make_mesh, "mesh", **over, **run.mesh)


def check(run: Run, every_steps: Mapping[str, int]) -> None:
  """Raises for numbers below 1, and for intervals that a dispatch of several steps passes over.

  Args:
    run: the numbers.
    every_steps: {key of the config: interval} of the evaluators.
  """
  counts = {
    "total_steps": run.total_steps,
    "batch_size": run.batch_size,
    "log_every_steps": run.log_every_steps,
    "checkpoint.every_steps": run.save_every_steps,
    "checkpoint.keep": run.keep,
    **every_steps,
    "steps_per_dispatch": run.steps_per_dispatch,
  }
  for key, value in counts.items():
    if value < 1:
      raise ValueError(f"{key}={value} must be at least 1.")
  num_steps = run.steps_per_dispatch
  counts["doctor.probe_every_steps"] = run.probe_every_steps or num_steps
  for key, value in counts.items():
    if (key == "total_steps" or key.endswith("every_steps")) and value % num_steps:
      raise ValueError(
        f"{key}={value} must be a multiple of steps_per_dispatch={num_steps}: nothing happens "
        "within a dispatch. Change one of them."
      )


def _loss_scale(section: Section) -> float:
  """`optim.loss_scale`: by what the loss is multiplied for a body in float16; 1 without."""
  scale = section.get("loss_scale", 1.0)
  if not scale > 0:
    raise ValueError(f"optim.loss_scale={scale} must be positive; for float16 try 2.0**15.")
  return float(scale)


def _doctor(section: Section | None) -> dict[str, Any]:
  """`config.doctor` with what it leaves out: spikes at 10 times the median are warned of."""
  section = dict(section or {})
  if unknown := sorted(set(section) - set(DOCTOR)):
    raise ValueError(f"config.doctor has {', '.join(unknown)}. It knows: {', '.join(DOCTOR)}.")
  found = DOCTOR | section
  pick(ON_SPIKE, found["on_spike"], "policy (doctor.on_spike)")
  if found["spike_factor"] is not None and not found["spike_factor"] > 1:
    raise ValueError(
      f"doctor.spike_factor={found['spike_factor']} must be above 1, or None to look for none."
    )
  every = found["probe_every_steps"]
  if every is not None and every < 1:
    raise ValueError(f"doctor.probe_every_steps={every} must be at least 1, or None for never.")
  return found
