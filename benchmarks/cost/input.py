r"""Does the input keep up? Images/s of the pipeline at CIFAR-10's shape, and of a train step.

  python benchmarks/cost/input.py                      # 32x32x3, batch 512, about two minutes
  python benchmarks/cost/input.py --npz=cifar10.npz    # the real images, the same work

Without --npz, 50,000 random uint8 images of 32x32x3 are written to an .npz and read back. Every row
is `pipeline.batches` as `train` uses it (two threads, four batches ahead): shuffled, mapped to
float32, with labels. Images/s are the best of some windows, wall time; images per CPU second count
the time that this process had a core, so they stand on a machine that is busy with other things.

A process of P reads its rows only, so P hosts together read P times the images/s of its row.

The step is that of configs/cifar10_sct.py with --channels and --num_blocks (16 and 1 make 0.42 M
parameters for the page's 60 M): a smaller network eats more images/s, so the ratio of the page
itself is larger than the one printed.
"""

import argparse
import contextlib
import itertools
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.data import pipeline, sources
from cmjax.program import compiled_step


def load(args):
  """The source, and what it is."""
  if args.npz:
    return sources.npz(args.npz), str(args.npz)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "random.npz"
    np.savez(path, train_images=images, train_labels=rng.integers(0, 10, 50_000))
    return sources.npz(path), "random images"


def read(source, args, *, flip, num_threads=2, rows=None):
  """Images/s and images per CPU second, each the best of all windows of `args.seconds`."""
  dataset = pipeline.dataset(source, batch_size=args.batch_size, seed=0, flip=flip, rows=rows)
  rates = []
  with contextlib.closing(pipeline.batches(dataset, start=0, num_threads=num_threads)) as batches:
    for _ in range(10):
      next(batches)
    for _ in range(args.windows):
      wall, cpu, count = time.perf_counter(), time.process_time(), 0
      while time.perf_counter() - wall < args.seconds:
        count += len(next(batches)["image"])
      rates.append((count / (time.perf_counter() - wall), count / (time.process_time() - cpu)))
  return np.max(rates, axis=0)


def step(args):
  """Parameters; images/s and images per CPU second of the train step, the best of some steps."""
  config = pages.load("cifar10_sct").unlock()
  config.net.update(channels=args.channels, num_blocks=args.num_blocks)
  levels = config.net.channel_mult[: args.num_levels]
  sides = [config.net.resolution >> i for i in range(len(levels))]
  attended = tuple(side for side in config.net.attn_resolutions if side in sides)
  config.net.update(channel_mult=levels, attn_resolutions=attended)
  config.batch_size = args.step_batch_size
  given, key = experiment.parse(config), jax.random.key(0)
  mesh, tx = sharding.make_mesh(devices=jax.devices()[:1]), experiment.transformation(given)
  state, _ = sharding.create(experiment.state_init(given, tx), mesh, key)
  size = sum(x.size for x in jax.tree.leaves(state.params))
  batch = {"image": jnp.zeros((config.batch_size, 32, 32, 3))}
  frozen = {"teacher": None, "lpips": None}
  jitted = jax.jit(compiled_step.make_step_fn(given, tx))
  compiled, rates = jitted.lower(state, batch, key, frozen).compile(), []
  for i in range(args.steps + 1):
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(state, batch, key, frozen))
    if i:  # the first warms up
      spent = np.array([time.perf_counter() - wall, time.process_time() - cpu])
      rates.append(config.batch_size / spent)
  return size, np.max(rates, axis=0)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--npz", type=Path, help="with train_images of 32x32x3")
  parser.add_argument("--batch_size", type=int, default=512)
  parser.add_argument("--seconds", type=float, default=1.0, help="of a window")
  parser.add_argument("--windows", type=int, default=5)
  parser.add_argument("--processes", type=int, nargs="+", default=[2, 8])
  parser.add_argument("--channels", type=int, default=16)
  parser.add_argument("--num_blocks", type=int, default=1)
  parser.add_argument("--num_levels", type=int, default=3, help="of the page's, from the finest on")
  parser.add_argument("--step_batch_size", type=int, default=32)
  parser.add_argument("--steps", type=int, default=10)
  args = parser.parse_args()

  source, what = load(args)
  print(f"{len(source)} images of {'x'.join(map(str, source.shape))} ({what}), "
        f"batch {args.batch_size}")  # fmt: skip
  print(f"{'rows of the batch':32}{'images/s':>10}{'images per CPU s':>18}")
  show = lambda name, rates: print(f"{name:32}{rates[0]:10,.0f}{rates[1]:18,.0f}", flush=True)
  for flip, threads in itertools.product((False, True), (2, 1)):
    rates = read(source, args, flip=flip, num_threads=threads)
    show(f"all{', flipped' * flip}, {threads} thread{'s' * (threads > 1)}", rates)
    if (flip, threads) == (False, 2):
      fed = rates
  for count in args.processes:
    rows = np.arange(args.batch_size // count)
    show(f"those of 1 of {count} processes", read(source, args, flip=False, rows=rows))
  size, eaten = step(args)
  show(f"step of {size / 1e6:.2f} M, batch {args.step_batch_size}", eaten)
  print(f"the pipeline over the step: {fed[0] / eaten[0]:,.0f} times in wall time, "
        f"{fed[1] / eaten[1]:,.0f} times in CPU time")  # fmt: skip


if __name__ == "__main__":
  main()
