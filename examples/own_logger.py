r"""A logger of your own: an object with three methods gets every record and every picture.

  python examples/own_logger.py --workdir=runs/own_logger --steps=500

This one writes a CSV file of the loss. In its place stands whatever you watch runs with; it is
called on one process only, between two steps.
"""

import argparse
import csv
import logging
from pathlib import Path

from cmjax import experiment, pages
from cmjax.program import train


class CsvLogger:
  """Writes step and loss, a row a record, and counts the pictures."""

  def __init__(self, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(path, "w", newline="")
    self._rows = csv.writer(self._file)
    self._rows.writerow(["step", "loss"])
    self.pictures = 0

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Takes {name: number} of a step."""
    if "loss" in scalars:
      self._rows.writerow([step, scalars["loss"]])

  def images(self, step: int, name: str, pixels) -> None:
    """Takes a picture, uint8 [h, w, 3]."""
    self.pictures += 1

  def close(self) -> None:
    """Is called once, whatever the end of the training is."""
    self._file.close()


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, default=Path("runs/own_logger"))
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  e = experiment.parse(config)
  e = e._replace(loggers=(CsvLogger(args.workdir / "loss.csv"),))
  return train.train(e, args.workdir)


if __name__ == "__main__":
  main()
