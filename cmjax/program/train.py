"""Training: from an experiment and a workdir to a trained model, in one sitting or in many."""

import functools
import os
from collections.abc import Callable

from cmjax import experiment
from cmjax.base import lock, paths, sharding, shared_folder
from cmjax.experiment import Experiment
from cmjax.program import doctor, out_of_memory, starts
from cmjax.program.sitting import Sitting
from cmjax.run.goodput import Goodput
from cmjax.run.stacks import Stacks

# EX_TEMPFAIL: the state is saved; start the same command again. Schedulers can requeue on it.
INTERRUPTED = 75


class Interrupted(SystemExit):
  """A signal came, or `stop` said so: the state is saved, and the process exits with code 75."""

  def __init__(self, step: int):
    super().__init__(INTERRUPTED)
    self.step = step


def train(
  exp: Experiment,
  workdir: str | os.PathLike[str],
  *,
  allow_config_change: bool = False,
  stop: Callable[[], bool] | None = None,
  profile_steps: tuple[int, int] | None = None,
  tries: int | None = None,
) -> dict[str, float]:
  """Trains, or goes on training, until run.total_steps.

  The workdir then holds config.json, parameters.txt, checkpoints/, metrics.jsonl, tensorboard/,
  samples/, cards/, scores.json, evaluations.json and report.html, and with snapshots also
  snapshots/. A run goes on from its newest good checkpoint; one that was killed at any moment ends
  with the same state, bit for bit, as one that was not: on the same devices and versions, and on
  GPUs with run.deterministic.

  Args:
    exp: the experiment, of `experiment.parse(config)`, with parts of your own where you want.
    workdir: of this run; made if it is not there.
    allow_config_change: go on although the checkpoint was made with other values: they are logged,
      and kept in config_changes.jsonl. What the state has no place for is refused all the same.
    stop: is called before every step and between the batches of evaluators; True asks the run to
      save and stop, as SIGTERM does. For a thread of another program: signals are heard in the main
      thread only.
    profile_steps: (10, 15) traces the five steps from step 10 to 15, into workdir/profile.
    tries: starts from one checkpoint, for programs that start a run again when it is lost: one more
      is refused; None: any number.

  Returns:
    The last value of every evaluator.

  Raises:
    ValueError: the experiment, the data, the workdir or its checkpoints do not fit, another run
      trains in the workdir, not every process sees the same, or `tries` starts made no new
      checkpoint.
    OSError: the workdir cannot be written any more, or was renamed, removed or replaced.
    OutOfMemory: the devices have not the memory; what fits is in the message.
    FloatingPointError: a loss or gradient was not finite and run.nonfinite is "stop".
    Interrupted: on a signal that asks to go (`sitting.ASKING`) or by `stop`, after saving. It is a
      SystemExit: catch it in a program that goes on.
  """
  workdir = paths.absolute(paths.place(workdir, "workdir"))
  experiment.check(exp)
  primary = sharding.process()[0] == 0
  goodput = Goodput()
  agree = functools.partial(sharding.all_agree, what="the lock of the workdir")
  with lock.hold(workdir, "train", primary=primary, agree=agree) as check_workdir:
    shared_folder.check(workdir)
    starts.count(workdir, tries)
    watched = (lambda: goodput.turns), (lambda: goodput.kind)
    with (
      Stacks(workdir, sharding.process()[0], exp.run.stall_seconds, *watched),
      out_of_memory.explained(exp, lambda: goodput.failed_in or goodput.kind),
      Sitting(
        *(exp, workdir, allow_config_change, check_workdir, stop),
        goodput=goodput,
        profile_steps=profile_steps,
      ) as sitting,
    ):
      _loop(sitting)
    starts.forget(workdir)
    return sitting.finish()


def _loop(sitting: Sitting) -> None:
  """Step after step, to the last or to a signal."""
  # Bookkeeping first, so that step 0, a resumed run and the last step are one case.
  while True:
    sitting.look()
    try:
      sitting.report()
      sitting.probe()
      sitting.save()  # before the evaluators: a crash in one of them loses no step
      if sitting.evaluate() and sitting.last:
        sitting.settle()
        return
      if sitting.stop:
        sitting.leave()
        raise Interrupted(sitting.step)
      sitting.take_step()
    except doctor.RollBack as reason:
      sitting.go_back(reason)
      continue
    sitting.progress()
