"""scores.json: a quick look with few samples does not take the place of scores from many."""

import json
import shutil

import pytest

from cmjax import experiment
from cmjax.program import sample, score_files
from helpers import tiny

pytestmark = pytest.mark.usefixtures("shared_programs")


def configure(number):
  config = tiny.config("snapshots").unlock()
  config.evals = dict(
    fd=config.evals.fd.to_dict() | {"num_samples": number},
    swd=dict(name="sliced_wasserstein", samplers=("one_step",), emas=("main",), every_steps=99,
             num_samples=64, batch_size=32),
  )  # fmt: skip
  return config


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory, shared_programs):
  workdir = tmp_path_factory.mktemp("scores") / "run"
  tiny.train(configure(64), workdir)
  return workdir


@pytest.fixture(name="run")
def _run(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "run")


def evaluate(run, number):
  return sample.evaluate(experiment.parse(configure(number)), run)


def scores(run):
  return json.loads((run / "scores.json").read_text())


def files(run):
  """The cards and scores of a run as they are."""
  paths = [run / "scores.json", run / score_files.SCORED_WITH, *(run / "cards").iterdir()]
  return {path.name: path.read_text() for path in paths}


def test_scores_from_fewer_samples_are_said_and_not_written(run, caplog):
  before = files(run)
  said = evaluate(run, 32)
  assert files(run) == before
  value = next(
    line.split()[1] for line in said.splitlines() if line.startswith("fd/two_steps/main")
  )
  assert float(value) != pytest.approx(scores(run)["fd/two_steps/main"], rel=1e-4)
  assert "fd_two_steps_main, not written: FD-pixels" in said
  (told,) = (message for message in caplog.messages if "those stay" in message)
  assert told.startswith("evals.fd looked at 32 samples. The scores in ") and "from 64 of" in told


def test_scores_from_as_many_or_more_are_written(run):
  before = scores(run)
  evaluate(run, 128)
  more = scores(run)
  assert more["fd/two_steps/main"] != before["fd/two_steps/main"]
  assert more["swd/one_step/main"] == before["swd/one_step/main"]
  evaluate(run, 64)
  assert scores(run) == more
  number = json.loads((run / score_files.SCORED_WITH).read_text())["num_samples"]
  assert number == {"fd": 128, "swd": 64}
  card = json.loads((run / "cards" / "fd_two_steps_main_step12.json").read_text())
  assert card["images"]["num"] == 128


def test_scores_of_other_weights_do_not_stay(run):
  evaluate(run, 128)
  config = configure(64)
  config.total_steps = 14
  made = tiny.train(config, run)
  assert scores(run) == made


@pytest.mark.parametrize("damage", ["", "{}", '{"step": 12, "num_samples": {"fd": 64}}', "[1]"])
def test_a_damaged_record_of_numbers_holds_nothing(run, damage):
  (run / score_files.SCORED_WITH).write_text(damage)
  before = scores(run)
  evaluate(run, 32)
  assert scores(run)["fd/two_steps/main"] != before["fd/two_steps/main"]
