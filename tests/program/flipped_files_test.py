"""One bit of one file of a run turns over: what reads the file is right, or says so."""

import json
import random
import shutil

import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.metrics import cards
from cmjax.program import averages, sample, searched_times, stored_runs, sweep, train
from helpers import tiny

CONFIG = tiny.config("snapshots", total_steps=12)
# Nothing reads these again: they are to be looked at.
SHOWN = ("report.html", "parameters.txt", "posthoc/sweep_fd_step12.html", "samples", "tensorboard")


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory, shared_programs):
  """A run with every file that a mode leaves."""
  workdir, exp = tmp_path_factory.mktemp("flipped") / "run", experiment.parse(CONFIG)
  tiny.train(CONFIG, workdir)
  sample.search_times(exp, workdir, name="two_steps", num_samples=32, num_probes=5, seed=0)
  sample.evaluate(exp, workdir)
  averages.write(workdir, [0.1], sharding.make_mesh())
  sweep.sweep(workdir, [0.05, 0.1])
  return workdir


def gone_on(workdir):
  """What the finished run says when it is called again with its own config."""
  return train.train(experiment.parse(stored_runs.read_record(workdir)), workdir)


def average(name):
  return lambda workdir: tiny.leaves(
    stored_runs.load_average(workdir, name, sharding.make_mesh())[1]
  )


def of_snapshots(workdir):
  mesh = sharding.make_mesh()
  with stored_runs.open_snapshots(workdir, mesh) as snapshots:
    plan = averages.recipe(snapshots, [0.07], averages.end_step(snapshots, None))
    return [tiny.leaves(made.params) for made in averages.reconstruct(snapshots, plan, mesh)]


def times(workdir):
  exp, weights = experiment.parse(CONFIG), stored_runs.newest_weights(workdir)
  used = searched_times.use(exp, workdir, weights)
  return {name: sampler.times for name, sampler in used.samplers.items()}


def all_cards(workdir):
  return [cards.read(path) for path in sorted((workdir / "cards").glob("*.json"))]


def distances(workdir):
  """Those to the kept statistics of the training images."""
  sample.evaluate(experiment.parse(CONFIG), workdir)
  scores = json.loads((workdir / "scores.json").read_text())
  return {name: score for name, score in scores.items() if name.startswith("fd")}


# Beginning of a file's path -> what reads it; the first that fits.
READS = {
  "cards": all_cards,
  "checkpoints": average("main"),
  "config.json": gone_on,
  "evaluations.json": gone_on,
  "metrics.jsonl": gone_on,
  "posthoc/sigma_rel": average("posthoc_0.100"),
  "posthoc/sweep": lambda workdir: sweep.sweep(workdir, [0.05, 0.1]),
  "references": distances,
  "sampler_times.json": times,
  "scored_with.json": gone_on,
  "scores.json": gone_on,
  "snapshots": of_snapshots,
}


def same(a, b):
  if isinstance(a, dict):
    return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
  if isinstance(a, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  return np.array_equal(a, b, equal_nan=isinstance(a, (float, np.ndarray)))


@pytest.mark.slow
@pytest.mark.parametrize("each", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_a_flipped_bit_of_any_file_is_seen_or_changes_nothing(made, tmp_path, each, caplog):
  files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
  files = sorted(f for f in files if (made / f).stat().st_size and not str(f).startswith(SHOWN))
  kinds = {str(f): next((kind for kind in READS if str(f).startswith(kind)), None) for f in files}
  unknown = [name for name, kind in kinds.items() if kind is None]
  assert not unknown and set(kinds.values()) == set(READS)
  draw, silent = random.Random(0), []
  for kind, read in READS.items():
    right = read(shutil.copytree(made, tmp_path / "right"))
    shutil.rmtree(tmp_path / "right")
    for _ in range(each):
      name = draw.choice([f for f in files if kinds[str(f)] == kind])
      workdir = shutil.copytree(made, tmp_path / "run")
      content = bytearray((workdir / name).read_bytes())
      at, bit = draw.randrange(len(content)), draw.randrange(8)
      content[at] ^= 1 << bit
      (workdir / name).write_bytes(content)
      caplog.clear()
      try:
        said = lambda: any(r.name == "cmjax" and r.levelname == "WARNING" for r in caplog.records)
        if not (same(read(workdir), right) or said()):  # an earlier checkpoint, with a word
          silent.append((str(name), at, bit))
      except ValueError as error:
        assert all(line.isprintable() for line in str(error).splitlines()), error
      shutil.rmtree(workdir)
  assert not silent
