"""What XLA is told so that a GPU computes a step to the same bits every time.

Two things make a step on a GPU differ from itself: operations that add in the order in which
threads come, and kernels that are chosen anew, by measuring them, at every compilation. The first
are left out; the choice is kept with the run, so that a run that goes on has the same kernels. CPUs
and TPUs compute a compiled program to the same bits anyway, and are told nothing.
"""

import logging
from pathlib import Path
from typing import Any

from cmjax.base import sharding
from cmjax.experiment import Run

logger = logging.getLogger("cmjax")

ON_GPU = {"xla_gpu_exclude_nondeterministic_ops": True}
KEEP, TAKE = "xla_gpu_dump_autotune_results_to", "xla_gpu_load_autotune_results_from"


def options(
  run: Run, platform: str, workdir: Path, *, started: bool = False
) -> dict[str, Any] | None:
  """The options of the compiler for a train step; None: its own.

  XLA refuses an option that it does not know, in words; as a flag of the environment it would end
  the process.

  Args:
    run: its `deterministic` asks for them.
    platform: of the devices that compute the step.
    workdir: where the chosen kernels are kept.
    started: whether the run has made steps already, in an earlier sitting.
  """
  if not run.deterministic or platform != "gpu":
    return None
  path = kernels(workdir)
  if path.exists():
    return ON_GPU | {TAKE: str(path)}
  if started:
    logger.warning(
      "%s is missing, which has the kernels that this run was compiled with. They are chosen anew: "
      "the next steps may differ in bits from those of a run that was never stopped.",
      path,
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  return ON_GPU | {KEEP: str(path)}


def kernels(workdir: Path) -> Path:
  """Where this process keeps the kernels that XLA chose."""
  return workdir / "autotuned" / f"process_{sharding.process()[0]}.textproto"
