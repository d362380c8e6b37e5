"""Writes the statistics of the training images that a Frechet evaluator compares with.

  cmjax reference --config=cifar10_sct --to=reference.npz

They are for the first Frechet evaluator of config.evals. Its reference=FILE then reads them.
"""

from cmjax.base.ranges import Folder
from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG
TO = common.Flag(
  "to", Folder, None, "The file to write: .npz or .pkl.", "the file to write: statistics.npz"
)
FLAGS = (TO, *common.PROCESSES, common.COMPILE_CACHE)
NEEDS = (TO,)


def run(values, config) -> None:
  """Writes the statistics."""
  from cmjax.program import sample

  common.say(sample.make_reference(common.experiment_of(config), values.to))
