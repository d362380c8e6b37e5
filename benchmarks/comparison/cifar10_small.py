r"""CIFAR-10 at a small size: teacher, sCT and sCD with a DDPM++ of 2.4 M, on real images.

  python benchmarks/comparison/cifar10_small.py --npz=cifar10.npz --weights=efficientnet_lite0.npz

After `--methods teacher`, `--methods sct` and `--methods scd` can run side by side, a core each;
without it the report is made of all. The pages configs/cifar10_*.py with a smaller network, smaller
batches and fewer steps; what is stretched with the steps (warm-ups, decay, averages) is in
`configure`. Two cores need some hours: stopped (SIGTERM, Ctrl-C) and started again by the same
command it goes on. Scored along each run and at its end is the Frechet distance in the features of
EfficientNet-Lite0 (FD-ELite0: not FID). It writes a table into docs/results/cifar10.md. The
distances against steps, cifar10_small.png, and a grid of samples of each, cifar10_small_*.png, go
beside it; the images of CIFAR-10 go nowhere.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from methods import RESULTS, plain_numbers, write_results

from cmjax import experiment, pages
from cmjax.metrics import cards
from cmjax.program import sample, train
from cmjax.run import page as report_page

METHODS = ("teacher", "sct", "scd")
NET = dict(
  # Few channels at 32 x 32, where a gradient of the weights is slow on a CPU: 0.57 of the time of
  # 32 channels with multipliers 1, 2, 4, and most of the parameters at 8 x 8.
  channels=16,
  channel_mult=(1, 2, 8),
  num_blocks=1,
  attn_resolutions=(8,),
  augment_dim=0,
  dropout=0.0,
)
DETECTOR = dict(name="frechet", features="efficientnet_lite0", variant="128", rounding="round")


def configure(method, args):
  """The page of a method, made small."""
  config = pages.load(f"cifar10_{method}").unlock()
  config.data.name, config.data.npz.path, config.data.flip = "npz", str(args.npz), True
  config.net.update(NET)
  config.batch_size, config.total_steps = args.batch_size, args.steps[METHODS.index(method)]
  # As on digits (docs/results/rates.md): short runs need a decay, and a longer average.
  config.optim.update(name="adam", lr=1e-3 if method == "teacher" else 2e-4)
  decay = dict(name="inverse_sqrt", decay_steps=max(1, config.total_steps // 5), warmup_steps=100)
  config.optim.schedule = decay
  images = config.total_steps * config.batch_size
  config.ema = dict(main=dict(name="half_life", half_life_images=images // 15, rampup_ratio=None))
  if method != "teacher":
    config.loss.warmup_steps = config.total_steps // 10
    config.init_from.workdir = str(args.workdir / "teacher")
  if method == "scd":
    config.teacher.workdir = str(args.workdir / "teacher")
  if method == "teacher":
    config.samplers.heun.num_steps = args.teacher_steps
  names = list(config.samplers)
  each = dict(samplers=names, emas=("main",), every_steps=max(1, config.total_steps // args.curve))
  config.evals = dict(
    grid=dict(name="samples", num_samples=64, **each),
    fd=dict(
      DETECTOR, weights=str(args.weights), reference=str(args.workdir / "reference.npz"),
      num_samples=args.num_samples, batch_size=min(250, args.num_samples), **each,
    ),
  )  # fmt: skip
  config.checkpoint.every_steps = max(1, min(100, config.total_steps // 2))
  config.log_every_steps = max(1, config.total_steps // 50)
  return config.lock()


def make_reference(args):
  """Statistics of the 50,000 training images, once."""
  path = args.workdir / "reference.npz"
  if not path.exists():
    config = configure("teacher", args).unlock()
    config.evals.fd.update(reference="train", floor=False)
    print(sample.make_reference(experiment.parse(config), path), flush=True)


def held_out(args, config):
  """The distance of as many held-out images as there are samples, once.

  It falls with the number of images: the floor, that of all 10,000, is below what samples can have.
  """
  images = args.workdir / f"held_out_{args.num_samples}.npz"
  card = args.workdir / "cards" / f"fd_{images.stem}.json"
  if not card.exists():
    with np.load(args.npz) as file:
      np.savez(images, images=file["test_images"][: args.num_samples])
    config = config.copy_and_resolve_references().unlock()
    config.evals.fd.floor = False
    sample.evaluate_images(experiment.parse(config), args.workdir, images)
  return cards.read(card)["values"]["frechet"]


def report(args, configs):
  figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
  lines = [
    "| method | NFE | FD-ELite0 | to the teacher's | steps | images |",
    "|---|---|---|---|---|---|",
  ]
  last = {}
  seen = {method: report_page.read_metrics(args.workdir / method) for method in configs}
  nfe = {
    (method, name): sampler.nfe
    for method, config in configs.items()
    for name, sampler in experiment.parse(config).samplers.items()
  }
  for method, config in configs.items():
    for name in config.samplers:
      steps, values = seen[method][f"fd/{name}/main"]
      axis.plot(steps, values, "o-", ms=3, label=f"{method}, NFE {nfe[method, name]}")
      last[method, name] = values[-1]
      grid = args.workdir / method / "samples" / f"{name}_main_{config.total_steps:08d}.png"
      shutil.copy(grid, args.docs / f"cifar10_small_{method}_{name}.png")
  floors = {
    args.num_samples: held_out(args, configs["teacher"]),
    10_000: seen["teacher"]["fd/floor"][1][-1],
  }
  best = min(value for (method, _), value in last.items() if method == "teacher")
  for (method, name), value in last.items():
    config = configs[method]
    images = f"{config.total_steps * config.batch_size:,}"
    lines.append(
      f"| {method} | {nfe[method, name]} | {value:.1f} | {value / best:.2f} | "
      f"{config.total_steps:,} | {images} |"
    )
  for number, floor in floors.items():
    lines.append(f"| {number:,} held-out images | | {floor:.1f} | {floor / best:.2f} | | |")
  axis.axhline(floors[args.num_samples], color="k", lw=1, ls=":", label="as many held-out images")
  axis.set(xlabel="steps", ylabel="FD-ELite0", yscale="log")
  plain_numbers(axis.yaxis)
  axis.legend(fontsize=7)
  figure.savefig(args.docs / "cifar10_small.png", dpi=120)
  size = sum(x.size for x in jax.tree.leaves(_shapes(configs["sct"])))
  lines += [
    "",
    f"{args.num_samples:,} samples against the 50,000 training images; {size / 1e6:.2f} M "
    f"parameters, batches of {args.batch_size}.",
  ]
  print("\n".join(lines))
  write_results(args.docs / "cifar10.md", "cifar10_small", "CIFAR-10 at a small size", lines)


def _shapes(config):
  return jax.eval_shape(experiment.parse(config).network.init, jax.random.key(0))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--npz", type=Path, required=True, help="with train_images and test_images")
  parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0")
  parser.add_argument("--workdir", type=Path, default=Path("runs/cifar10_small"))
  parser.add_argument("--docs", type=Path, default=RESULTS)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--steps", type=int, nargs=3, default=(2_000, 1_500, 1_200), metavar=METHODS)
  parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
  parser.add_argument("--teacher_steps", type=int, default=9, help="of Heun's sampler")
  parser.add_argument("--curve", type=int, default=4, help="scores along each run")
  parser.add_argument("--num_samples", type=int, default=2_000, help="of each score")
  args = parser.parse_args()
  logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  args.workdir = args.workdir.absolute()
  args.workdir.mkdir(parents=True, exist_ok=True)
  make_reference(args)
  configs = {method: configure(method, args) for method in METHODS}
  try:
    for method in args.methods:
      train.train(experiment.parse(configs[method]), args.workdir / method)
  except train.Interrupted:
    sys.exit(train.INTERRUPTED)
  if set(args.methods) == set(METHODS):
    report(args, configs)


if __name__ == "__main__":
  main()
