r"""A metric of your own: an evaluator looks at samples, and yields names and values.

  python examples/own_metric.py --workdir=runs/own_metric --steps=500

The share of samples that lie on a black square of the checkerboard.

From the command line, with this folder on PYTHONPATH and the evaluator named in a config:
  evals.black=dict(name="own_metric:on_black", samplers=("one_step",), emas=("main",),
                   every_steps=1_000, num_samples=10_000).
"""

import argparse
import logging

import numpy as np

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.base.parts import part
from cmjax.data import toy2d
from cmjax.experiment import Evaluator, Setting
from cmjax.metrics import evaluators
from cmjax.program import train


def share_on_black(points: np.ndarray) -> float:
  """The share of points [n, 2] on a black square; the bottom left one of the 4x4 is black."""
  column, row = np.floor(2 * (points / toy2d.CHECKERBOARD_HALF_WIDTH + 1)).astype(int).T
  on_board = (column >= 0) & (column < 4) & (row >= 0) & (row < 4)
  return float(np.mean(on_board & ((column + row) % 2 == 0)))


@part
def on_black(setting: Setting, *, num_samples: int = 10_000):
  """`evals.*.name="own_metric:on_black"`: called once, before training."""

  def evaluate(averages, key):
    for name, sampler in setting.samplers.items():
      for ema in setting.emas:
        points = evaluators.whole(sampler, averages[ema], key, num_samples, sharding.everyone)
        yield f"{name}/{ema}", share_on_black(points)

  return evaluate


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_metric")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  e = experiment.parse(config)
  mine = Evaluator(on_black, samplers=("one_step", "two_step"), emas=("main",), every_steps=100)
  e = e._replace(evaluators={**e.evaluators, "black": mine})
  return train.train(e, args.workdir)


if __name__ == "__main__":
  main()
