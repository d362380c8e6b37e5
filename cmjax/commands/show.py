"""Prints every value of an experiment's config, or in what two configs differ.

  cmjax show --config=cifar10_sct
  cmjax show --config=cifar10_sct --config_other=runs/cifar10/config.json

A config.json is what a run was made with.
"""

from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG
CONFIG_OTHER = common.Flag("config_other", str, None, "A second config, to print the differences.")
FLAGS = (CONFIG_OTHER,)
NEEDS = ()


def run(values, config) -> None:
  """Prints the config, or the differences."""
  from cmjax import pages

  if values.config_other is None:
    common.say(pages.show(config))
  else:
    common.say(pages.differences(config, pages.load(values.config_other)))
