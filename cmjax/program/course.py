"""Where a run is: its state, and the batches and the noise that come next."""

import logging
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import sharding
from cmjax.experiment import Experiment
from cmjax.program import doctor, stored_runs
from cmjax.program.stored_runs import Loaded
from cmjax.run import checkpoint
from cmjax.training.step import TrainState
from cmjax.types import Array

logger = logging.getLogger("cmjax")

# One seed, one key for each.
PURPOSES = ("initialise", "train", "evaluate")


def key_for(seed: int, purpose: str) -> Array:
  """The key of one of `PURPOSES`. That of "evaluate" gives the same noise at every step."""
  return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


def fresh_state(
  exp: Experiment, init: Callable[..., TrainState], mesh: Mesh, teacher: Loaded | None
) -> TrainState:
  """The state of step 0: random weights, or those that `init_from` names."""
  key = key_for(exp.run.seed, "initialise")
  start = stored_runs.first_weights(exp, key, mesh, teacher)
  of_teacher = None
  if exp.method.starts_from_teacher and teacher:
    where = getattr(exp.teacher, "workdir", "the one handed in")
    what = f"loss.vsd: the teacher in {where}"
    of_teacher = stored_runs.grow(exp.network, teacher.model[1], key, what)
  return sharding.create(init, mesh, key, start, of_teacher)[0]


class Course:
  """The state of a run, and its place in the data and in the noise.

  Each roll back leaves out the batches up to that of the step that it is for, and goes on with the
  noise of other steps: with the same of either it would come to the same end.
  """

  def __init__(
    self,
    exp: Experiment,
    mesh: Mesh,
    data: Any,
    restored: checkpoint.Restored | None,
    fresh: Callable[[], TrainState],
  ):
    self._exp, self._mesh, self._data, self._fresh = exp, mesh, data, fresh
    meta = restored.meta if restored else {}
    self.rolled_back, self._shift = meta.get("rolled_back", 0), meta.get("batches_left_out", 0)
    self._times, self._place = 0, -1  # of roll backs in a row to one step
    self._begin(restored)

  def _begin(self, restored: checkpoint.Restored | None) -> None:
    self.state: TrainState = restored.state if restored else self._fresh()
    self.step = int(self.state.step)
    first = self.step + self._shift
    self._batches = experiment.batches(self._exp, self._mesh, first, self._data)
    key = key_for(self._exp.run.seed, "train")
    key = jax.random.fold_in(key, self.rolled_back) if self.rolled_back else key
    self.key: Array = sharding.create(lambda: key, self._mesh)[0]

  @property
  def meta(self) -> dict[str, int]:
    """What a checkpoint has to know beside the state."""
    return {"rolled_back": self.rolled_back, "batches_left_out": self._shift}

  def next_batches(self, count: int) -> tuple[dict[str, Any], ...]:
    """The batches of the next steps."""
    return tuple(next(self._batches) for _ in range(count))

  def go_back(self, reason: doctor.RollBack, restored: checkpoint.Restored | None) -> None:
    """To a checkpoint, or without one to the start.

    Raises:
      FloatingPointError: after three times to the same step.
    """
    step = restored.step if restored else 0
    self._times = self._times + 1 if step == self._place else 1
    self._place = step
    if self._times > doctor.MOST_ROLL_BACKS:
      raise FloatingPointError(
        f"{reason} Rolled back to step {step} {doctor.MOST_ROLL_BACKS} times already, with other "
        "batches and noise each time: the trouble is in the weights or the config. Lower the "
        "learning rate, or look at tangent_norm and jvp_error in metrics.jsonl."
      )
    self.close()
    self.rolled_back += 1
    self._shift += reason.step - step
    self._begin(restored)
    logger.warning(
      "%s Rolled back to step %d, as asked (%d so far).", reason, step, self.rolled_back
    )

  def close(self) -> None:
    """Lets go of the threads that read ahead."""
    self._batches.close()
