"""What XLA is told so that a GPU computes a step to the same bits every time.

Two things make a step on a GPU differ from itself: operations that add in the order in which
threads come, and kernels that are chosen anew, by measuring them, at every compilation. The first
are left out; the choice is kept with the run, so that a run that goes on has the same kernels. CPUs
and TPUs compute a compiled program to the same bits anyway, and are told nothing.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from cmjax.base import digests, sharding, stores
from cmjax.base.atomic_files import replacing
from cmjax.experiment import Run

logger = logging.getLogger("cmjax")

ON_GPU = {"xla_gpu_exclude_nondeterministic_ops": True}
KEEP, TAKE = "xla_gpu_dump_autotune_results_to", "xla_gpu_load_autotune_results_from"


def options(
  run: Run, platform: str, workdir: epath.Path, *, started: bool = False
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
  path, on_disk = kernels(workdir), _on_disk(kernels(workdir))
  if path.exists():
    if stores.is_remote(path):
      with replacing(on_disk) as file:
        file.write(path.read_bytes())
    return ON_GPU | {TAKE: str(on_disk)}
  if started:
    logger.warning(
      "%s is missing. It held the GPU kernels that this run was compiled with, so they are chosen "
      "anew. The next steps may differ in bits from those of a run that was never stopped.",
      path,
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  return ON_GPU | {KEEP: str(on_disk)}


def keep(workdir: epath.Path) -> None:
  """Puts what XLA has chosen where the run keeps it, if that is no disk; after the compilation."""
  path = kernels(workdir)
  if stores.is_remote(path) and (on_disk := _on_disk(path)).exists() and not path.exists():
    stores.put(str(on_disk), path)


def _on_disk(path: epath.Path) -> Path:
  """Where XLA reads and writes it: it knows disks alone."""
  if not stores.is_remote(path):
    return Path(path)
  return Path(tempfile.gettempdir()) / f"cmjax-autotuned-{digests.of_json(str(path))[:16]}"


def kernels(workdir: epath.Path) -> epath.Path:
  """Where this process keeps the kernels that XLA chose."""
  return workdir / "autotuned" / f"process_{sharding.process()[0]}.textproto"
