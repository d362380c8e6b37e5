"""Measures a data set, and proposes sigma_data, P_mean and P_std for it.

  cmjax measure --config=cifar10_sct

Prints a line of JSON, then the same in words. No run is needed.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG
FLAGS = (common.COMPILE_CACHE,)
NEEDS = ()


def run(values, config) -> None:
  """Measures the data."""
  from cmjax.program import sample

  common.say(sample.measure(common.experiment_of(config)))
