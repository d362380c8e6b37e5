"""The small run on CIFAR-10: its configs, and what it reports of runs that are done."""

import json
import pathlib
import runpy
import sys
import types

import numpy as np
import pytest

from cmjax import experiment
from cmjax.metrics import cards, frechet
from cmjax.run import writer

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS / "comparison"))
  monkeypatch.delitem(sys.modules, "methods", raising=False)
  pytest.importorskip("matplotlib")
  return runpy.run_path(
    str(BENCHMARKS / "comparison" / "cifar10_small.py"), run_name="cifar10_small"
  )


@pytest.fixture
def args(tmp_path):
  return types.SimpleNamespace(
    npz="cifar10.npz", weights="lite0.npz", workdir=tmp_path / "runs", docs=tmp_path / "docs",
    batch_size=32, steps=(40, 30, 20), teacher_steps=5, curve=2, num_samples=1_000,
  )  # fmt: skip


def test_the_runs_are_the_pages_made_small(benchmark, args):
  configs = {method: benchmark["configure"](method, args) for method in benchmark["METHODS"]}
  assert [c.loss.name for c in configs.values()] == ["diffusion", "sct", "scd"]
  for method, config in configs.items():
    start, teacher = config.init_from.workdir, config.teacher.workdir
    own = str(args.workdir / "teacher")
    assert start == ("" if method == "teacher" else own)
    assert teacher == (own if method == "scd" else "")
    assert config.evals.fd.features == "efficientnet_lite0" and config.data.npz.path == args.npz
    shapes = benchmark["_shapes"](config)
    size = sum(np.prod(x.shape) for x in benchmark["jax"].tree.leaves(shapes))
    assert 2e6 < size < 4e6  # as it says
  assert experiment.parse(configs["teacher"]).samplers["heun"].nfe == 9
  assert configs["sct"].total_steps == 30 and configs["sct"].evals.fd.every_steps == 15


def test_the_report_has_the_last_score_of_each_and_its_grid(benchmark, args):
  configs = {method: benchmark["configure"](method, args) for method in benchmark["METHODS"]}
  args.docs.mkdir()
  distances = {"heun": 40.0, "one_step": 90.0, "two_step": 60.0}
  for method, config in configs.items():
    folder = args.workdir / method
    (folder / "samples").mkdir(parents=True)
    rows = []
    # The first score was made twice: the run was stopped after it, and went on from before.
    for step, factor in ((20, 9), (20, 2), (config.total_steps, 1)):
      row = {"step": step, "time": 1.0, "fd/floor": 8.0}
      row |= {f"fd/{name}/main": distances[name] * factor for name in config.samplers}
      rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    for name in config.samplers:
      picture = folder / "samples" / f"{name}_main_{config.total_steps:08d}.png"
      writer.save_png(picture, np.zeros((4, 4, 3), np.uint8))
  card = dict(
    values={"frechet": 20.0}, score="FD-ELite0", detector={}, reference={}, images={"num": 1_000},
    rounding="round", options={},
  )  # fmt: skip
  cards.write(args.workdir / "cards", "fd_held_out_1000", card)
  benchmark["report"](args, configs)
  text = (args.docs / "cifar10.md").read_text()
  assert "| teacher | 9 | 40.0 | 1.00 | 40 | 1,280 |" in text
  assert "| sct | 1 | 90.0 | 2.25 | 30 | 960 |" in text
  assert "| scd | 2 | 60.0 | 1.50 | 20 | 640 |" in text
  assert "| 1,000 held-out images | | 20.0 | 0.50 | | |" in text
  assert "| 10,000 held-out images | | 8.0 | 0.20 | | |" in text
  grids = {path.name for path in args.docs.glob("cifar10_small*.png")}
  assert grids == {
    "cifar10_small.png", "cifar10_small_teacher_heun.png", "cifar10_small_sct_one_step.png",
    "cifar10_small_sct_two_step.png", "cifar10_small_scd_one_step.png",
    "cifar10_small_scd_two_step.png",
  }  # fmt: skip


def test_as_many_held_out_images_as_samples_are_scored_once(benchmark, args, tmp_path):
  rng = np.random.default_rng(0)
  train, test = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (300, 200))
  args.npz, args.num_samples = tmp_path / "images.npz", 100
  np.savez(args.npz, train_images=train, test_images=test)
  args.workdir.mkdir()
  config = benchmark["configure"]("teacher", args).unlock()
  config.evals.fd.update(features="pixels", weights=None, variant=None, reference="train")
  config.net.resolution = 8
  found = benchmark["held_out"](args, config.lock())
  of = lambda images: frechet.moments(images.reshape(len(images), -1) / 255)
  assert found == pytest.approx(frechet.distance(of(test[:100]), of(train)), rel=1e-9)
  args.npz.unlink()
  assert benchmark["held_out"](args, config) == found  # of the card
