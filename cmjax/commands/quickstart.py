r"""The main job in ten minutes on two cores: a teacher and two consistency models on real digits.

  python -m cmjax.commands.quickstart --workdir=runs/quickstart      (in a clone: make quickstart)

Trains configs/digits_teacher.py, digits_scd.py and digits_sct.py, one after the other, and prints
what came out. Interrupted, it goes on where it was when it is started again.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import ml_collections as mlc
import numpy as np

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.base.ranges import Folder
from cmjax.commands import common
from cmjax.data import image_files
from cmjax.experiment import Experiment
from cmjax.program import score_files, train
from cmjax.run import writer

RUNS = {"teacher": "digits_teacher", "sCD": "digits_scd", "sCT": "digits_sct"}
SHOWN = ("loss", "optim", "ema")


def configure(method: str, workdir: Path, variant: str) -> mlc.ConfigDict:
  """The config of one run, with the teacher's workdir in this quickstart's."""
  config = pages.load(f"{RUNS[method]}:{variant}" if variant else RUNS[method]).unlock()
  if method != "teacher":
    config.init_from.workdir = str(workdir / "teacher")
  if method == "sCD":
    config.teacher.workdir = str(workdir / "teacher")
  return config


def print_settings(method: str, config: mlc.ConfigDict) -> None:
  """What one looks at first: how long, how large, and the sections in SHOWN."""
  print(f"\n{method}: {config.total_steps} steps of {config.batch_size}")
  for section in SHOWN:
    print(f"  {section}: {json.dumps(config[section].to_dict())}")


def print_table(given: dict[str, Experiment], scores: dict[str, dict[str, float]]) -> None:
  """The table that the README shows."""
  rows = [
    (method, row["NFE"], row["value"], row["images/s"])
    for method, one in given.items()
    for row in score_files.rows(one, scores[method])
  ]
  teacher = next(value for method, _, value, _ in rows if method == "teacher")
  print(f"\n{'method':9}{'NFE':>4}{'Frechet distance':>18}{'ratio to teacher':>18}{'images/s':>10}")
  for method, nfe, value, speed in sorted(rows, key=lambda row: -row[1]):
    print(f"{method:9}{nfe:4}{value:18.4f}{value / teacher:18.2f}{speed:10.0f}")
  floor = scores["teacher"]["fd/floor"]
  print(f"{'held out':9}{'':4}{floor:18.4f}{floor / teacher:18.2f}")
  print("Pixels in [0, 1]; 2,000 samples against the 1,442 training digits. 'held out': the 355")
  print("digits kept out of training; being few, they have a larger distance than good samples.")


def picture(workdir: Path, given: dict[str, Experiment]) -> Path:
  """A row of real digits, then the first 16 of each sampler's last grid; returns the file."""
  real = next(iter(experiment.batches(given["teacher"], sharding.make_mesh(), 0)))["image"][:64]
  grids = [writer.grid(real, columns=8)]
  for method, one in given.items():
    for key in one.samplers:
      path = workdir / method / "samples" / f"{key}_main_{one.run.total_steps:08d}.png"
      grids.append(np.asarray(image_files.open_picture(path, str(path))[0]))
  # Two rows of 8, each of 48 pixels and a line, become one of 16.
  line = np.full((1, 2 * grids[0].shape[1] + 1, 3), 128, np.uint8)
  strips = [np.concatenate([g[:48], line[:, :48].reshape(48, 1, 3), g[49:97]], 1) for g in grids]
  rows = [row for strip in strips for row in (strip, line)]
  writer.save_png(workdir / "digits.png", np.concatenate(rows[:-1]))
  return workdir / "digits.png"


def main(argv: list[str] | None = None) -> None:
  """Trains the three, prints settings and scores, draws the picture."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--workdir", type=common.argument(Folder, "--workdir"), default="runs/quickstart"
  )
  parser.add_argument("--variant", default="", help="'smoke' for a few steps of each")
  args = parser.parse_args(argv)
  args.workdir = Path(args.workdir)
  # Ours only, as in `cmjax.main`.
  logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  start, scores, given = time.monotonic(), {}, {}
  for method in RUNS:
    config = configure(method, args.workdir, args.variant)
    print_settings(method, config)
    given[method] = experiment.parse(config)
    scores[method] = train.train(given[method], args.workdir / method)
  print_table(given, scores)
  print(f"\nReal digits, then 16 of each row above:  {picture(args.workdir, given)}")
  for method in RUNS:
    print(f"{method + ', grids and report:':41}{args.workdir / method / 'report.html'}")
  print(f"Compare them on one page:                cmjax runs {args.workdir}")
  print(f"Trained and scored in {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
  main()
