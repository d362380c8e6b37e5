"""How often a run was started in a row without a new checkpoint, so that none does so for ever.

Launchers start a run again when its machines were lost. One that is lost at the same place each
time (it has not the memory, a file breaks it) would be started for as long as somebody pays.
"""

import contextlib

from etils import epath

from cmjax.base import json_files, sharding
from cmjax.base.atomic_files import write_json
from cmjax.run import checkpoint

STARTS = "starts.json"  # in the workdir: {"step": of the newest checkpoint, "starts": from it}


def count(workdir: epath.Path, most: int | None) -> None:
  """Counts this start; call it on every process, before anything that may end the process.

  Args:
    workdir: of the run.
    most: starts from one checkpoint; None: any number, and those before are forgotten.

  Raises:
    ValueError: there were so many already.
  """
  if most is None:
    return forget(workdir)
  step, before = _newest(workdir), 0
  if sharding.process()[0] == 0:
    before = _before(workdir, step)
    if before < most:
      write_json(workdir / STARTS, {"step": step, "starts": before + 1})
  if not sharding.all_agree(before < most):
    at = "no checkpoint yet" if step is None else f"the newest is of step {step}"
    raise ValueError(
      f"{most} starts in a row ended without a new checkpoint ({at}): this one would most likely "
      "end in the same way. Look at the ends of their logs. To start anyway, remove "
      f"{workdir / STARTS}, or start without --tries."
    )


def forget(workdir: epath.Path) -> None:
  """Counts from nothing again: the run came to its end, or somebody started it by hand."""
  if sharding.process()[0] == 0:
    (workdir / STARTS).unlink(missing_ok=True)


def _newest(workdir: epath.Path) -> int | None:
  if not (workdir / "checkpoints").is_dir():
    return None
  with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as checkpoints:
    return max(checkpoints.steps(), default=None)


def _before(workdir: epath.Path, step: int | None) -> int:
  """The starts from this checkpoint so far; none where the file is no such table."""
  try:
    found = json_files.read(workdir / STARTS)
  except (OSError, ValueError):
    return 0
  if not isinstance(found, dict) or found.get("step") != step:
    return 0
  starts = found.get("starts")
  return starts if isinstance(starts, int) and starts >= 0 else 0
