r"""How long a folder of PNG files takes to prepare, and how fast it is read back.

  python benchmarks/cost/prepare.py \
    --npz ~/.cache/cmjax/cifar10.npz ~/.cache/cmjax/fashion_mnist.npz

Of each .npz 60,000 images (train, then test) are written as PNG files in a folder for each class.
That folder is prepared by the command a user types, once undisturbed and once killed (SIGKILL) as
soon as a third of the shards are there and started again; the two are compared byte for byte, and
validated. Then the set is read back: `take`, of random indices, is what a source does, `pipeline`
is what training gets (shuffled, float32, labels; two threads, four batches ahead). Rates are the
best of some windows in wall time; those of CPU time stand on a machine that is busy with others.
"""

import argparse
import concurrent.futures
import contextlib
import filecmp
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cmjax.data import pipeline, records


def write_folder(path, npz, limit):
  """PNG files in class folders; returns how many."""
  with np.load(npz, allow_pickle=False) as file:
    images = np.concatenate([file["train_images"], file["test_images"]])[:limit]
    labels = np.concatenate([file["train_labels"], file["test_labels"]])[:limit]
  for label in np.unique(labels):
    (path / f"{label:03d}").mkdir(parents=True)
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(path / f"{label:03d}" / f"{i:05d}.png")
  return len(images)


def command(*arguments):
  return [sys.executable, "-m", "cmjax.data.prepare", *map(str, arguments)]


def timed(*arguments):
  """Wall and CPU seconds of a command, its processes together."""
  wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return time.perf_counter() - wall, cpu


def kill_in_the_middle(source, out, num_shards):
  """Starts to prepare and kills it; returns how many shards were there then."""
  process = subprocess.Popen(
    command(source, "--out", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  count = lambda: len(list(out.glob("train/*.array_record")))
  while count() < max(1, num_shards // 3) and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (out / "train" / "manifest.json").exists(), "it was too late to kill it"
  return count()


def are_equal(a, b):
  """Whether two sets are the same files with the same bytes."""
  names = [sorted(p.name for p in (x / "train").iterdir()) for x in (a, b)]
  if names[0] != names[1]:
    return False
  _, different, errors = filecmp.cmpfiles(a / "train", b / "train", names[0], shallow=False)
  return not different and not errors


def rate(args, step):
  """Images/s and images per CPU second, each the best of the windows; step() reads some."""
  step()
  rates = []
  for _ in range(args.windows):
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < args.seconds:
      count += step()
    rates.append((count / (time.perf_counter() - wall), count / (time.process_time() - cpu)))
  return np.max(rates, axis=0)


def read_back(args, out):
  """Rows (what, images/s, images per CPU second)."""
  source = records.records(out)
  rng = np.random.default_rng(0)
  some = lambda: rng.integers(0, len(source), args.batch_size)
  yield "take, 1 thread", rate(args, lambda: len(source.take(some())["image"]))
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    both = lambda: sum(len(x["image"]) for x in pool.map(source.take, [some() for _ in range(8)]))
    yield "take, 2 threads", rate(args, both)
  dataset = pipeline.dataset(source, batch_size=args.batch_size, seed=0)
  with contextlib.closing(pipeline.batches(dataset, start=0)) as batches:
    yield "pipeline, 2 threads", rate(args, lambda: len(next(batches)["image"]))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--npz", type=Path, nargs="+", required=True, help="train_images, ...")
  parser.add_argument("--limit", type=int, default=60_000, help="images of each")
  parser.add_argument("--batch_size", type=int, default=512)
  parser.add_argument("--seconds", type=float, default=1.0, help="of a window")
  parser.add_argument("--windows", type=int, default=7)
  args = parser.parse_args()
  for npz in args.npz:
    with tempfile.TemporaryDirectory() as folder:
      source, whole, killed = (Path(folder) / name for name in ("png", "whole", "killed"))
      number = write_folder(source, npz.expanduser(), args.limit)
      wall, cpu = timed(source, "--out", whole)
      shards = sorted((whole / "train").glob("*.array_record"))
      size = sum(p.stat().st_size for p in shards)
      print(
        f"{npz.stem}: {number:,} PNG files, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
      )
      print(f"  prepared in {wall:.0f} s ({number / wall:,.0f}/s), {cpu:.0f} s of CPU; "
            f"{len(shards)} shards, {size / 1e6:.0f} MB")  # fmt: skip
      there = kill_in_the_middle(source, killed, len(shards))
      wall, _ = timed(source, "--out", killed)
      same = "the same bytes" if are_equal(whole, killed) else "OTHER BYTES"
      print(f"  killed at {there} shards, started again: {wall:.0f} s, {same}")
      wall, cpu = timed("--validate", whole)
      print(f"  validated in {wall:.0f} s, {cpu:.0f} s of CPU")
      for what, (images, per_cpu) in read_back(args, whole):
        print(f"  {what:20} {images:10,.0f} images/s {per_cpu:10,.0f} per CPU s", flush=True)


if __name__ == "__main__":
  main()
