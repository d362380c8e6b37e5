r"""A data source of your own: anything with a shape, a length and elements by index.

  python examples/own_data.py --workdir=runs/own_data --steps=500

The points of a trefoil in the plane, with the class of the arc that each is of. Element i is a
function of i, so that any process may ask for any element, and a resumed run sees the same batches.

From the command line, with this folder on PYTHONPATH and the source named in a config:
  data.name="own_data:trefoil".
"""

import argparse
import logging

import numpy as np

from cmjax import experiment, pages
from cmjax.base.parts import part
from cmjax.data import sources
from cmjax.program import train


class Trefoil(sources.Source):
  """Points float32 [2] of a three-leaved curve, of std 0.5, with a little noise."""

  shape = (2,)
  num_classes = 3

  def __init__(self, num_points: int, seed: int):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, num_points)
    radius = np.cos(1.5 * angle)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    points += 0.01 * rng.standard_normal(points.shape)
    self._points = (0.5 * points / points.std()).astype(np.float32)
    self._labels = (angle // (2 * np.pi / 3)).astype(np.int32)

  def __len__(self) -> int:
    return len(self._points)

  def __getitem__(self, i: int):
    return {"image": self._points[i], "label": self._labels[i]}


@part
def trefoil(*, split: str = "train", num_points: int = 50_000) -> sources.Source:
  """`data.name="own_data:trefoil"`: called once for each split that is asked for."""
  return Trefoil(num_points, seed=sources.SPLITS.index(split))


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_data")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  e = experiment.parse(config)
  e = e._replace(source=lambda split: trefoil(split=split))
  return train.train(e, args.workdir)


if __name__ == "__main__":
  main()
