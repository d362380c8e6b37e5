r"""Does FD-ELite0 order what it should? CIFAR-10 against itself, noisy, blurred, grey, repeated.

  python benchmarks/cost/detector.py --workdir=runs/detector --weights=efficientnet_lite0.npz

Reference: the first 10,000 training images. Every other set is made of the 10,000 test images, as
they are ("floor") or changed, so that only the change differs. Features are kept in the workdir, a
thousand images at a time: the same command goes on where it was stopped.
docs/guides/detectors.md says how to get the weights; --data is an .npz with train_images and
test_images, uint8.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from cmjax.base.atomic_files import replacing
from cmjax.metrics import detectors, frechet

CHUNK = 1_000
FEW = 500  # distinct images of "few images"


def noise(images, std, rng):
  """Gaussian noise of a std in grey levels, rounded and cut off."""
  return np.clip(np.rint(images + std * rng.standard_normal(images.shape)), 0, 255).astype(np.uint8)


def by_pillow(images, change):
  return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def blur(images, radius):
  """Gaussian, of a std in pixels."""
  return by_pillow(images, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def grey(images):
  return by_pillow(images, lambda image: image.convert("L").convert("RGB"))


def few(rows):
  """The first of them again and again: of images or of their features."""
  return rows[np.arange(len(rows)) % FEW]


CHANGES = {  # name -> images, rng -> images
  "floor": lambda images, rng: images,
  "noise 8": lambda images, rng: noise(images, 8, rng),
  "noise 24": lambda images, rng: noise(images, 24, rng),
  "blur 1": lambda images, rng: blur(images, 1),
  "grey": lambda images, rng: grey(images),
}


def features(detector, name, images, folder):
  """[n, dim] of a set, from the workdir where they are there; and images per CPU second."""
  rows, rates = [], []
  for start in range(0, len(images), CHUNK):
    path = folder / f"{name.replace(' ', '_')}_{start}.npy"
    if not path.exists():
      cpu, part = time.process_time(), images[start : start + CHUNK]
      found = detector.apply(part).features
      rates.append(len(part) / (time.process_time() - cpu))
      with replacing(path) as file:
        np.save(file, found)
      print(
        f"{name}: {start + len(part)} of {len(images)}, {rates[-1]:.1f} images/CPU s", flush=True
      )
    rows.append(np.load(path, allow_pickle=False))
  return np.concatenate(rows), rates


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--weights", required=True)
  parser.add_argument("--data", type=Path, default=Path("~/.cache/cmjax/cifar10.npz"))
  parser.add_argument("--variant", default="128")
  parser.add_argument("--num", type=int, default=10_000)
  args = parser.parse_args()
  # Few at a time: on CPUs activations that stay in the cache count for more.
  detector = detectors.load("efficientnet_lite0", args.weights, variant=args.variant, batch_size=8)
  folder = args.workdir / f"{args.variant}_{detector.record['weights_sha256'][:12]}_{args.num}"
  folder.mkdir(parents=True, exist_ok=True)
  with np.load(args.data.expanduser(), allow_pickle=False) as file:
    train, test = (file[f"{split}_images"][: args.num] for split in ("train", "test"))
  found = {"reference": features(detector, "reference", train, folder)}
  for i, (name, change) in enumerate(CHANGES.items()):
    changed = change(test, np.random.default_rng(i))
    found[name] = features(detector, name, changed, folder)
  rates = [rate for _, measured in found.values() for rate in measured]
  sets = {name: rows for name, (rows, _) in found.items()} | {"few images": few(found["floor"][0])}
  moments = {name: frechet.moments(rows) for name, rows in sets.items()}
  print(f"\n{detector.record}\n{args.num} images a set")
  if rates:
    print(f"{np.median(rates):.1f} images/CPU s, the median of {len(rates)} chunks")
  print(f"\n| set | {detector.score} |\n|---|---|")
  for name in (*CHANGES, "few images"):
    print(f"| {name} | {frechet.distance(moments[name], moments['reference']):.3f} |")


if __name__ == "__main__":
  main()
