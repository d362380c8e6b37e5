"""Searches the intermediate times of a run's samplers of 2 to 4 steps.

  cmjax search --workdir=runs/cifar10

Times that are better than those in use are written into the run. The verbs sample and evaluate then
use them.
"""

from typing import Annotated

from cmjax.base.ranges import Range
from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_TRAINED
NUM_PROBES = common.Flag(
  "num_probes",
  Annotated[int, Range(5, 1_000, why="Three bracket, two refine.")],
  12,
  "How many tries for each intermediate time.",
)
FLAGS = (
  *(common.WORKDIR, common.SAMPLER, common.NUM_SAMPLES, NUM_PROBES, common.SEED),
  common.COMPILE_CACHE,
)
NEEDS = (common.WORKDIR,)


def run(values, config) -> None:
  """Searches, and says what was best."""
  from cmjax.program import sample

  times = sample.search_times(
    common.experiment_of(config),
    values.workdir,
    name=values.sampler,
    num_samples=values.num_samples,
    num_probes=values.num_probes,
    seed=values.seed,
  )
  common.say(times)
