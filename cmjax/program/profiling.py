"""A trace of a few steps, which TensorBoard, XProf and Perfetto open.

It is written to `profile/` in the workdir, by each of several processes into a folder of its own.
Each dispatch of steps is annotated as `train` with the number of its first step.
"""

import contextlib
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from cmjax.base import sharding, stores

logger = logging.getLogger("cmjax")

NAME = "train"  # of the annotation of a step
_RANGE = re.compile(r"(\d+):(\d+)")


def steps_of(text: str | None) -> tuple[int, int] | None:
  """The steps that a flag asks for: "10:15" are five, from the state of step 10 to that of 15.

  Raises:
    ValueError: it is no such range.
  """
  if text is None:
    return None
  match = _RANGE.fullmatch(text.strip())
  first, last = (int(match[1]), int(match[2])) if match else (0, 0)
  if first >= last:
    raise ValueError(
      f"--profile_steps={text} must be two steps FIRST:LAST, the first below the last: 10:15 "
      "traces the five steps from step 10 to step 15."
    )
  return first, last


class Profile:
  """The trace of a training, if one is asked for.

  Args:
    steps: first and last, as `steps_of` gives them; None: no trace.
    workdir: of the run.
    start: the step that this sitting begins with.
  """

  def __init__(self, steps: tuple[int, int] | None, workdir: epath.Path, start: int):
    index, count = sharding.process()
    self.folder = workdir / "profile" / (f"process_{index}" if count > 1 else "")
    # JAX writes to disks: a trace for a bucket is put there at its end.
    self.traced = Path(self.folder)
    if steps and stores.is_remote(workdir):
      self.traced = Path(tempfile.mkdtemp(prefix="cmjax-profile-"))
    self._steps, self._running = steps, False
    if steps and steps[1] <= start:
      self._steps = None
      logger.warning(
        "--profile_steps=%d:%d: nothing is traced, since this run is at step %d already.",
        *(*steps, start),
      )

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Around the dispatch of the steps that follow this one: starts the trace where it is due."""
    if self._steps and not self._running and self._steps[0] <= step < self._steps[1]:
      self.traced.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(self.traced)
      self._running = True
    with jax.profiler.StepTraceAnnotation(NAME, step_num=step):
      yield

  def stop_after(self, step: int, results: Any) -> None:
    """Ends the trace once the steps up to this one, and what they gave, are there."""
    if self._running and self._steps and step >= self._steps[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is under way."""
    if self._running:
      self._running, self._steps = False, None
      jax.profiler.stop_trace()
      if stores.is_remote(self.folder):
        for name in stores.files(self.traced):
          stores.put(str(self.traced / name), self.folder / name)
        shutil.rmtree(self.traced, ignore_errors=True)
      logger.info("The trace is in %s: tensorboard --logdir=%s", self.folder, self.folder)


def steps_in(folder: Path) -> list[int]:
  """The numbers of the annotated steps of the newest trace in a folder, ascending."""
  files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
  if not files:
    return []
  found = set()
  with warnings.catch_warnings():  # its types lack what Python wants of types
    warnings.simplefilter("ignore", DeprecationWarning)
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
      for event in (event for line in plane.lines for event in line.events):
        if event.name == NAME:
          found |= {int(value) for name, value in event.stats if name == "step_num"}
  return sorted(found)
