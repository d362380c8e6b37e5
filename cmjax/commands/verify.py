"""Checks on this machine that the formulas hold, and the network of an experiment or a run.

  cmjax verify
  cmjax verify --config=cifar10_sct
  cmjax verify --workdir=runs/cifar10

Exit code 0 where every check passes, else 1.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_RUN_OR_NONE
FLAGS = (common.WORKDIR, common.COMPILE_CACHE)
NEEDS = ()


def run(values, config) -> int:
  """Checks, and says the verdict."""
  from cmjax import verify

  table, passed = verify.verify(common.experiment_of(config), values.workdir)
  common.say(table)
  return 0 if passed else 1
