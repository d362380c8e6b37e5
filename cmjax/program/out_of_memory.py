"""What to say where the memory of the devices is not enough: asked for, there, and what would fit.

XLA has one kind of error for it, RESOURCE_EXHAUSTED, and words of its own for each platform and
for compiling and running. What fits is the plan's to say (`program/plan.py`), where it can be made.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from cmjax import experiment
from cmjax.base import device_memory, sharding
from cmjax.experiment import Experiment
from cmjax.program import plan

logger = logging.getLogger("cmjax")

_DOING = {
  "start": "Preparing the run",
  "compiling": "Compiling the train step",
  "steps": "A train step",
  "data": "A train step",
  "saves": "Saving a checkpoint",
  "evaluations": "An evaluation",
}


def is_one(error: BaseException) -> bool:
  """Whether an error says that the memory of a device is not enough."""
  return isinstance(error, jax.errors.JaxRuntimeError) and device_memory.is_lack(str(error))


@contextlib.contextmanager
def explained(exp: Experiment, doing: Callable[[], str]) -> Iterator[None]:
  """Turns XLA's error for a lack of memory into an `OutOfMemory` with advice.

  Args:
    exp: the experiment that runs inside.
    doing: of `goodput.KINDS`, what goes on just now.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not is_one(error):
      raise
    device = experiment_devices(exp)[0]
    what = f"{_DOING.get(doing(), 'The run')} needs more memory than {_there(device)}"
    logger.debug("XLA's words: %s", error)
    raise device_memory.OutOfMemory(
      f"{what}{_numbers(str(error))}. {_advice(exp, doing())}"
    ) from error


def experiment_devices(exp: Experiment) -> list[Any]:
  """The devices that an experiment runs on."""
  return list(experiment.make_mesh(exp.run).devices.flat)


def _there(device: Any) -> str:
  stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
  if "bytes_limit" not in stats:
    return f"{device.device_kind} has" if device.platform != "cpu" else "this machine has"
  used = f", {_gib(stats['bytes_in_use'])} of them in use" if "bytes_in_use" in stats else ""
  return f"{device.device_kind} has ({_gib(stats['bytes_limit'])} for JAX{used})"


def _numbers(message: str) -> str:
  numbers = device_memory.asked(message)
  if not numbers:
    return f" ({message.splitlines()[0][:200]})"
  there = f", where {_gib(numbers[1])} were free" if len(numbers) > 1 else ""
  return f": {_gib(numbers[0])} were asked for{there}"


def _gib(size: int | float) -> str:
  return f"{size / 2**30:.3g} GiB" if size >= 2**27 else f"{size / 2**20:.3g} MiB"


def _advice(exp: Experiment, doing: str) -> str:
  """What to change, in a sentence or two."""
  if doing == "evaluations":
    sizes = {
      f"evals.{name}.batch_size": section["batch_size"]
      for name, section in exp.record.get("evals", {}).items()
      if section.get("batch_size")
    }
    lower = [f"--config.{key}={max(1, size // 2)}" for key, size in sizes.items()]
    return f"Samples are drawn by batches: try {' or '.join(lower) or 'fewer samples at a time'}."
  device = experiment_devices(exp)[0]
  if device.platform == "cpu" or sharding.process()[1] > 1:
    return f"{_next_smaller(exp, doing)} What fits on which chips: cmjax plan --topology=..."
  logger.info("Looking for a layout of this run that fits, as cmjax plan does.")
  try:
    report = plan.plan(exp, "local")
  except Exception as error:  # of compilers, which are short of memory themselves
    logger.debug("No plan: %s", error)
    return f"{_next_smaller(exp, doing)} No plan could be made here."
  if report["fits"] and not report["attempts"][-1]["changes"]:
    return (
      "By the plan the step alone fits: something else on the device takes the rest. See that no "
      f"other program uses it. {_next_smaller(exp, doing)}"
    )
  if report["fits"] is None:
    return _next_smaller(exp, doing)
  return f"By the plan: {plan.advice(report)}"


def _next_smaller(exp: Experiment, doing: str) -> str:
  """The next thing to try, where nobody can say that it fits."""
  changes = next(iter(_smaller(exp, doing)), None)
  if changes is None:
    return "Take more devices, a smaller batch_size or a smaller network."
  flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
  return f"Try {flags}, which needs less; whether it fits is not known."


def _smaller(exp: Experiment, doing: str) -> Iterator[Mapping[str, Any]]:
  """What needs less memory and computes the same, in the order of `plan.candidates`."""
  count = len(experiment_devices(exp))
  if doing != "start":  # the state has the same size with these
    if exp.network.options.get("remat") is False:
      yield {"net.remat": True}
    size = exp.run.microbatch or exp.run.batch_size
    if size % (2 * count) == 0:
      yield {"microbatch": size // 2}
  fsdp = experiment.make_mesh(exp.run).shape["fsdp"]
  if count % (2 * fsdp) == 0:
    yield {"mesh.data": -1, "mesh.fsdp": 2 * fsdp}
