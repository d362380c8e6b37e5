"""Checks the machines that a run is to have, before it starts: a few minutes, one table.

  cmjax preflight --config=cifar10_sct --workdir=runs/cifar10

Bandwidth to the devices and between them, the precision of products, ten steps twice, a trace of
three steps, a checkpoint written and read back. No data and no teacher are read. Start it on all
machines of the run, as you would start `train`. Exit code 0 where nothing is wrong, else 1.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_RUN
FLAGS = (common.WORKDIR, *common.PROCESSES, common.COMPILE_CACHE)
NEEDS = (common.WORKDIR,)


def run(values, config) -> int:
  """Checks, and says the verdict."""
  from cmjax.base import sharding
  from cmjax.program import preflight

  table, passed = preflight.preflight(common.experiment_of(config), values.workdir)
  if sharding.process()[0] == 0 or preflight.WRONG in table:
    common.say(table)
  return 0 if passed else 1
