"""Training: from an experiment and a workdir to a trained model, in one sitting or in many."""

import os
from collections.abc import Callable

from cmjax import experiment
from cmjax.base import lock, paths, sharding
from cmjax.experiment import Experiment
from cmjax.program import doctor
from cmjax.program.sitting import Sitting

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
) -> dict[str, float]:
  """Trains, or goes on training, until run.total_steps.

  The workdir then holds config.json, parameters.txt, checkpoints/, metrics.jsonl, tensorboard/,
  samples/, cards/, scores.json, evaluations.json and report.html, and with snapshots also
  snapshots/. A run goes on from its newest good checkpoint; one that was killed at any moment ends
  with the same state, bit for bit, as one that was not.

  Args:
    exp: the experiment, of `experiment.parse(config)`, with parts of your own where you want.
    workdir: of this run; made if it is not there.
    allow_config_change: go on although the checkpoint was made with other values: they are logged,
      and kept in config_changes.jsonl. What the state has no place for is refused all the same.
    stop: is called before every step; True asks the run to save and stop, as SIGTERM does. For a
      thread of another program: signals are heard in the main thread only.

  Returns:
    The last value of every evaluator.

  Raises:
    ValueError: the experiment, the data, the workdir or its checkpoints do not fit, or another run
      trains in the workdir.
    OSError: the workdir cannot be written any more, or was renamed, removed or replaced.
    FloatingPointError: a loss or gradient was not finite and run.nonfinite is "stop".
    Interrupted: on a signal that asks to go (`sitting.ASKING`) or by `stop`, after saving. It is a
      SystemExit: catch it in a program that goes on.
  """
  workdir = paths.absolute(paths.place(workdir, "workdir"))
  experiment.check(exp)
  primary = sharding.process()[0] == 0
  with lock.hold(workdir, "train", primary=primary, agree=sharding.all_agree) as check_workdir:
    with Sitting(exp, workdir, allow_config_change, check_workdir, stop) as sitting:
      # Bookkeeping first, so that step 0, a resumed run and the last step are one case.
      while True:
        sitting.look()
        try:
          sitting.report()
          sitting.probe()
          sitting.save()  # before the evaluators: a crash in one of them loses no step
          sitting.evaluate()
          if sitting.last:
            break
          if sitting.stop:
            sitting.leave()
            raise Interrupted(sitting.step)
          sitting.take_step()
        except doctor.RollBack as reason:
          sitting.go_back(reason)
          continue
        sitting.progress()
    return sitting.finish()
