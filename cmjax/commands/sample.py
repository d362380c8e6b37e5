"""Draws samples from a run, or from a model in one file: pictures, and the numbers as .npz.

  cmjax sample digits
  cmjax sample --workdir=runs/cifar10 --num_samples=64
  cmjax sample --workdir=runs/cifar10 --sampler=two_step --seeds=0-49999 --out=samples/cifar10

The first draws from a model that comes with cmjax. The second writes a grid and an .npz of each
sampler. The third writes 000000.png and on, and started again it goes on where it was. Prints the
paths.
"""

from cmjax.base.ranges import Count, Workdir
from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_TRAINED
EMA = common.Flag("ema", str, None, "Name of the average. By default the first of the run.")
SEEDS = common.Flag(
  "seeds", str, None, "Numbers of samples, a picture each, as in 0-49999 or 0-9,17."
)
OUT = common.Flag(
  "out", Workdir, None, "Folder to write to. By default samples in the run, or samples/MODEL."
)
BATCH_SIZE = common.Flag("batch_size", Count, 64, "How many samples a device draws at once.")
FLAGS = (
  *(common.WORKDIR, common.MODEL, common.NUM_SAMPLES, SEEDS, common.SAMPLER, EMA, common.SEED),
  *(OUT, BATCH_SIZE, *common.PROCESSES, common.COMPILE_CACHE),
)
NEEDS = ((common.WORKDIR, common.MODEL),)


def run(values, config) -> None:
  """Draws and says where."""
  from cmjax.program import models, numbered, sample

  drawn = dict(
    num_samples=values.num_samples,
    seeds=None if values.seeds is None else numbered.seeds(values.seeds),
    name=values.sampler,
    seed=values.seed,
    out=values.out,
    batch_size=values.batch_size,
  )
  exp = common.experiment_of(config)
  if values.model and values.ema:
    raise ValueError(f"--ema={values.ema}: a model in one file is one average. Drop --ema.")
  if values.model:
    written = models.sample(exp, values.model, **drawn)
  else:
    written = sample.sample(exp, values.workdir, ema=values.ema, **drawn)
  for path in written:
    common.say(path)
