"""Draws samples from a run: pictures, and the numbers as .npz, in its folder samples/.

  cmjax sample --workdir=runs/cifar10 --num_samples=64

Prints the paths of the files.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_TRAINED
EMA = common.Flag("ema", str, None, "Name of the average. By default the first of the run.")
FLAGS = (
  *(common.WORKDIR, common.NUM_SAMPLES, common.SAMPLER, EMA, common.SEED),
  *(*common.PROCESSES, common.COMPILE_CACHE),
)
NEEDS = (common.WORKDIR,)


def run(values, config) -> None:
  """Draws and says where."""
  from cmjax.program import sample

  paths = sample.sample(
    common.experiment_of(config),
    values.workdir,
    num_samples=values.num_samples,
    name=values.sampler,
    seed=values.seed,
    ema=values.ema,
  )
  for path in paths:
    common.say(path)
