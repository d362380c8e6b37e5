r"""Makes the models that come with cmjax of their runs: the file in float16, its scores, its card.

  python benchmarks/comparison/shipped_models.py --runs=runs --out=cmjax/models

Train the runs first, by the commands of their cards (`COMMANDS` below). A score is the Frechet
distance in the pixels of --num_samples samples to the training images, as the page's evaluator has
it: of the file, of the run in float32 from the same noise, and of the run from other noise.
"""

import argparse
import logging
import tempfile
from pathlib import Path

from cmjax import experiment, pages
from cmjax.base import atomic_files
from cmjax.convert import files
from cmjax.metrics import cards
from cmjax.program import convert, models, sample, stored_runs

LICENCES = {
  "digits": "The images are scikit-learn's handwritten digits (UCI, CC BY 4.0): E. Alpaydin and "
  "C. Kaynak, Optical Recognition of Handwritten Digits.",
  "fashion_mnist": "The images are Fashion-MNIST (MIT, (c) 2017 Zalando SE).",
}
MODELS = {  # name: the page that it is of, that of its teacher, what it is
  "digits": ("digits_cond_ect", "digits_cond_teacher", "handwritten digits, 8x8, 10 classes"),
  "fashion_mnist": ("fashion_mnist_ect", "fashion_mnist_teacher", "clothes, 28x28, 10 classes"),
}
COMMANDS = (
  "cmjax train --config={teacher} --workdir=runs/{teacher}",
  "cmjax train --config={page} --workdir=runs/{page}",
  "cmjax convert --export runs/{page} --to {name}.safetensors --dtype=float16",
)


def score(path, page, folder):
  """The distance of an .npz of images by the evaluator of a page."""
  config = pages.load(page).unlock()
  config.evals = {"fd": config.evals.fd}
  said = sample.evaluate_images(experiment.parse(config), folder, path)
  return cards.read(said.partition(": ")[0])["values"]["frechet"]


def make(name, args, folder):
  """Writes the file and the card of a model."""
  page, teacher, what = MODELS[name]
  run, target = args.runs / page, args.out / f"{name}{models.SUFFIX}"
  target.unlink(missing_ok=True)
  print(convert.export(run, target, dtype="float16"))
  own, num = stored_runs.read_experiment(run), args.num_samples
  draw = {
    "float16": lambda **options: models.sample(own, target, **options),
    "float32": lambda **options: sample.sample(own, run, **options),
    "float32, other noise": lambda **options: sample.sample(own, run, seed=1, **options),
  }
  scores = {label: {} for label in draw}
  for label, call in draw.items():
    for sampler in own.samplers:
      *_, path = call(name=sampler, num_samples=num, out=folder / label)
      scores[label][sampler] = score(path, page, folder / label)
    print(name, label, scores[label])
  stored = models.read_file(target)
  least = min(scores["float16"].values())
  count = sum(array.size for array in stored.found.tensors.values())
  card = {
    "about": f"{what}; {count:,} parameters, ECT from a teacher; Frechet distance in the pixels "
    f"{least:.3g} at best ({num:,} samples).",
    "page": page,
    "sampler": "two_step",
    "parameters": count,
    "bytes": target.stat().st_size,
    "sha256": files.digest(target),
    "commands": [line.format(name=name, page=page, teacher=teacher) for line in COMMANDS],
    "score": "Frechet distance in the pixels, in [0, 1], to the training images",
    "num_samples": num,
    "scores": scores,
    "licence": f"Apache-2.0. {LICENCES[name]} No image of them is in the file.",
  }
  atomic_files.write_json(target.with_suffix(".json"), card)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--runs", type=Path, default=Path("runs"))
  parser.add_argument("--out", type=Path, default=models.FOLDER)
  parser.add_argument("--num_samples", type=int, default=5_000)
  parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
  args = parser.parse_args()
  logging.getLogger("absl").setLevel(logging.ERROR)
  args.out.mkdir(parents=True, exist_ok=True)
  for name in args.models:
    with tempfile.TemporaryDirectory() as folder:
      make(name, args, Path(folder))


if __name__ == "__main__":
  main()
