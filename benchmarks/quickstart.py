r"""The main job in ten minutes on two cores: a teacher and two consistency models on real digits.

  make quickstart      (python benchmarks/quickstart.py --workdir=runs/quickstart)

Trains configs/digits_teacher.py, digits_scd.py and digits_sct.py, one after the other, and prints
what came out. Interrupted, it goes on where it was when it is started again.
"""

import argparse
import json
import logging
import runpy
import time
from pathlib import Path

import jax
import numpy as np

from cmjax import build, reporting, sharding, train

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = {"teacher": "digits_teacher", "sCD": "digits_scd", "sCT": "digits_sct"}
SHOWN = ("loss", "optim", "ema")


def configure(method, workdir, variant):
  """The config of one run, with the teacher's workdir in this quickstart's."""
  config = runpy.run_path(str(CONFIGS / f"{RUNS[method]}.py"))["get_config"](variant)
  if method != "teacher":
    config.init_from.workdir = str(workdir / "teacher")
  if method == "sCD":
    config.teacher.workdir = str(workdir / "teacher")
  return config


def print_settings(method, config):
  print(f"\n{method}: {config.total_steps} steps of {config.batch_size}")
  for section in SHOWN:
    print(f"  {section}: {json.dumps(config[section].to_dict())}")


def print_table(configs, scores):
  """The table that the README shows."""
  rows = [
    (method, row["NFE"], row["value"], row["images/s"])
    for method, config in configs.items()
    for row in train.score_rows(config, scores[method])
  ]
  teacher = next(value for method, _, value, _ in rows if method == "teacher")
  print(f"\n{'method':9}{'NFE':>4}{'Frechet distance':>18}{'ratio to teacher':>18}{'images/s':>10}")
  for method, nfe, value, speed in sorted(rows, key=lambda row: -row[1]):
    print(f"{method:9}{nfe:4}{value:18.4f}{value / teacher:18.2f}{speed:10.0f}")
  floor = scores["teacher"]["fd/floor"]
  print(f"{'held out':9}{'':4}{floor:18.4f}{floor / teacher:18.2f}")
  print("Pixels in [0, 1]; 2,000 samples against the 1,442 training digits. 'held out': the 355")
  print("digits kept out of training; being few, they have a larger distance than good samples.")


def picture(workdir, configs):
  """A row of real digits, then one of each sampler from the same noise; returns the file."""
  mesh = sharding.make_mesh()
  real = next(iter(build.batches(configs["teacher"], mesh, 0)))["image"][:16]
  strips = [np.asarray(real)]
  for method, config in configs.items():
    trained = train.load_network(workdir / method, mesh)
    for key in config.samplers:
      sampler = build.sampler(config, key, trained.net, mesh)
      x0 = sampler(next(iter(trained.averages.values())), jax.random.key(1), 16)
      strips.append(np.clip(x0, -1, 1))
  path = workdir / "digits.png"
  reporting.save_png(path, reporting.grid(np.concatenate(strips), columns=16))
  return path


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
  parser.add_argument("--variant", default="", help="'smoke' for a few steps of each")
  args = parser.parse_args()
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  logging.getLogger("cmjax").setLevel(logging.INFO)
  start, scores, configs = time.monotonic(), {}, {}
  for method in RUNS:
    configs[method] = config = configure(method, args.workdir, args.variant)
    print_settings(method, config)
    scores[method] = train.train(config, args.workdir / method)
  print_table(configs, scores)
  print(f"\nOf each method 16, from the same noise:  {picture(args.workdir, configs)}")
  for method in RUNS:
    print(f"Report of {method}:{' ' * (29 - len(method))}{args.workdir / method / 'report.html'}")
  print(f"Trained and scored in {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
  main()
