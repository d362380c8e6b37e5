"""A search of times: what is surely better is kept, and nothing else is."""

import json
import math
import types

import numpy as np
import pytest

from cmjax import experiment
from cmjax.program import sample, searched_times, stored_runs
from helpers import tiny

FD = dict(
  name="frechet", features="pixels", samplers=("two_steps",), emas=("main",), every_steps=99,
  num_samples=64, batch_size=64,
)  # fmt: skip
EXPERIMENT = tiny.experiment_of(evals=dict(fd=FD))


def judge(gain, error, bias=0.001):
  """A score with its least at the angle 0.6."""
  return experiment.SearchScore(
    num_steps=2, num_samples=2_000, score=lambda mid: 0.05 + (mid[0] - 0.6) ** 2,
    gain=lambda times, others: (gain, error), bias=lambda: bias,
  )  # fmt: skip


@pytest.fixture(name="search")
def _search(monkeypatch, tmp_path):
  """What a search writes and says, with a score of one's own."""
  (tmp_path / "checkpoints").mkdir()
  trained = types.SimpleNamespace(averages={"main": {}}, step=12)
  monkeypatch.setattr(stored_runs, "averages_of", lambda workdir: ["main"])
  monkeypatch.setattr(stored_runs, "load_averages", lambda *args: trained)

  def search(scores, **options):
    monkeypatch.setattr(experiment, "search_score", lambda *args: scores)
    said = sample.search_times(
      EXPERIMENT, tmp_path, name="two_steps", num_probes=12, seed=0, **options
    )
    path = tmp_path / searched_times.FILE
    return said, json.loads(path.read_text())["two_steps"] if path.exists() else None

  return search


@pytest.mark.parametrize(
  ("gain", "error", "told"),
  [
    (-0.0036, 0.002, "It is 0.0036 +- 0.002 worse than (1.1000) from other noise: (1.1000) stays"),
    (0.003, 0.002, "0.003 +- 0.002 better than (1.1000) from other noise, which is not sure: (1.1"),
    (0.0, 0.0, "(1.1000) stays"),
    (math.nan, 0.1, "(1.1000) stays"),
  ],
)
def test_times_that_are_not_surely_better_are_not_written(search, gain, error, told):
  said, found = search(judge(gain, error))
  assert told in said and found is None


def test_times_that_are_surely_better_are_written_with_how_sure_that_is(search):
  said, found = search(judge(0.01, 0.002))
  assert said.endswith("It is 0.01 +- 0.002 better than (1.1000) from other noise: kept")
  assert found["mid_times"][0] == pytest.approx(0.6, abs=0.1)
  assert found["gain"] == {"over": [pytest.approx(1.1)], "value": 0.01, "standard_error": 0.002}
  assert found["num_samples"] == 2_000 and found["weights"]["step"] == 12
  assert found["score"] == min(probe["score"] for probe in found["probes"])


def test_a_second_search_is_compared_with_the_times_of_the_first(search):
  _, first = search(judge(0.01, 0.002))
  asked = []
  scores = judge(0, 0)._replace(gain=lambda times, others: asked.append(others) or (-1.0, 0.1))
  _, second = search(scores)
  assert second == first
  np.testing.assert_allclose(asked, [first["mid_times"]], rtol=1e-6)


@pytest.mark.parametrize(("bias", "warned"), [(0.03, True), (0.02, False)])
def test_too_few_samples_are_told_by_what_perfect_ones_would_have(search, caplog, bias, warned):
  search(judge(0, 0.1, bias))
  told = "2,000 perfect samples would have a distance of 0.03, more than half of the 0.05"
  assert any(told in message for message in caplog.messages) == warned


@pytest.mark.usefixtures("shared_programs")
def test_a_search_of_a_run_compares_with_noise_that_it_has_not_seen(tmp_path):
  config = tiny.config(evals=dict(fd=FD))
  tiny.train(config, tmp_path)
  scores, given = tmp_path / "scores.json", experiment.parse(config)
  before = scores.read_text()
  said = sample.search_times(
    given, tmp_path, name="two_steps", num_samples=64, num_probes=5, seed=0
  )
  assert said.startswith("two_steps: mid_times=(") and " from other noise" in said
  kept = (tmp_path / searched_times.FILE).exists()
  assert said.endswith("kept" if kept else "stays")
  assert scores.read_text() == before
