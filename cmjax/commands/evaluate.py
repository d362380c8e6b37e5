"""Scores a run with the evaluators of its config, or images that exist already.

  cmjax evaluate --workdir=runs/cifar10
  cmjax evaluate --config=cifar10_sct --workdir=scores --images=FOLDER

The first rewrites the run's scores.json, its cards and its report. The second writes cards only.
"""

from cmjax.base.ranges import Folder
from cmjax.commands import common

CONFIG_FROM = common.ConfigFrom.FLAG_OR_TRAINED
IMAGES = common.Flag("images", Folder, None, "A folder or .npz of images, instead of a checkpoint.")
FLAGS = (common.WORKDIR, IMAGES, *common.PROCESSES, common.COMPILE_CACHE)
NEEDS = (common.WORKDIR,)


def run(values, config) -> None:
  """Scores the run, or the images."""
  from cmjax.program import sample

  experiment = common.experiment_of(config)
  if values.images is None:
    common.say(sample.evaluate(experiment, values.workdir))
  else:
    common.say(sample.evaluate_images(experiment, values.workdir, values.images))
