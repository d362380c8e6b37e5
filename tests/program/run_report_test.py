"""The page of a run: when it is there, and what of the teacher is beside it."""

import ast
import json
import pathlib
import re
import threading

import numpy as np
import pytest
from etils import epath

from cmjax import experiment, pages
from cmjax.program import run_report, run_summaries, train
from cmjax.run import charts, sentences
from helpers import shown_runs, tiny


def student(workdir, teacher, **of_run):
  """A student of a teacher's workdir: its place, and what its page shows of the teacher."""
  record = shown_runs.config("scd", ("one_step",), teacher={"workdir": str(teacher)})
  shown_runs.make(workdir, {"one_step": 0.1}, record=record, **of_run)
  scores = json.loads((workdir / "scores.json").read_text())
  return run_report.of_teacher(str(teacher), epath.Path(workdir), record, scores)


@pytest.fixture(name="teacher")
def _teacher(tmp_path):
  record = shown_runs.config("diffusion", ("heun",))
  return shown_runs.make(tmp_path / "teacher", {"heun": 0.06}, record=record)


def test_the_scores_of_the_teacher_are_beside_the_students(tmp_path, teacher):
  beside = student(tmp_path / "student", teacher)
  (row,) = beside.rows
  assert {k: row[k] for k in ("run", "score", "sampler", "NFE", "value", "floor")} == {
    **{"run": "its teacher", "score": "fd", "sampler": "heun", "NFE": 35},
    **{"value": 0.06, "floor": 0.05},
  }
  assert row["value / floor"] == pytest.approx(1.2)
  assert beside.curves == {"fd/teacher: heun/main": 0.06} and not beside.notes


def test_scores_of_another_kind_are_not_and_the_page_says_why(tmp_path, teacher):
  beside = student(tmp_path / "student", teacher, of_card={"num": 64})
  assert not beside.rows and not beside.curves
  assert beside.notes == [
    "The teacher's fd (0.06) is not shown beside this run's, since they cannot be compared: "
    "images.num: 64 in A, 2000 in B."
  ]


@pytest.mark.parametrize("break_it", ["gone", "damaged"])
def test_a_teacher_that_cannot_be_read_ends_nothing(tmp_path, teacher, break_it):
  path = teacher / "config.json"
  path.unlink() if break_it == "gone" else path.write_text("{")
  (note,) = student(tmp_path / "student", teacher).notes
  assert "could not be read" in note and str(teacher) in note


def test_which_run_is_the_teacher():
  of = run_report._teacher_of
  both = {"teacher": {"workdir": "a"}, "init_from": {"workdir": "b"}}
  assert of(True, both) == "a" and of(False, both) == "b"  # a method that does not distil has none
  assert of(True, {"teacher": {"workdir": ""}}) == "" == of(False, {"init_from": None})
  assert of(True, {"teacher": {"workdir": "python:my:teacher"}}) == ""


def test_precision_is_not_measured_in_floors():
  rows = [run_report._row(score) for score in (SCORE, SCORE._replace(name="fd/recall"))]
  assert [row["value / floor"] for row in rows] == [2.0, None]


SCORE = run_report.Score("fd", "heun", "main", 0.5, 10, 0.25, 35)


def test_the_page_is_there_from_the_first_evaluation_on_and_after_an_interruption(
  tmp_path, shared_programs
):
  seen, calls = [], iter(range(1, 1000))
  made = tiny.experiment_of()

  def stop():
    call, path = next(calls), tmp_path / "report.html"
    text = path.read_text() if path.exists() else ""
    seen.append((call, "swd</td>" in text, text.count("alt="), "Interrupted" in text))
    return call == 14

  thread = threading.Thread(target=lambda: _quietly(made, tmp_path, stop))
  thread.start()
  thread.join()
  by_call = {call: tuple(others) for call, *others in seen}
  # Asked at step 0 and for its grid, at steps 1 to 6, for a grid and two batches, at steps 7, 8.
  assert by_call[1] == (False, 0, False)  # before the first evaluation there is none
  assert by_call[3] == (False, 2, False)  # the grid of step 0, and training points
  assert by_call[13][:2] == (True, 3)  # the score and the grid of step 6
  text = (tmp_path / "report.html").read_text()
  assert re.search(r"Interrupted at step \d+ of 12. The same command goes on from there.", text)
  train.train(made, tmp_path)
  text = (tmp_path / "report.html").read_text()
  assert "Interrupted" not in text and text.count("alt=") == 4
  assert (tmp_path / "samples" / "real.png").exists()


def _quietly(made, workdir, stop):
  with pytest.raises(train.Interrupted):
    train.train(made, workdir, stop=stop)


def test_scores_of_the_sittings_before_are_on_the_page_of_an_interrupted_one(
  tmp_path, shared_programs
):
  made = tiny.experiment_of(total_steps=12)
  steps = []
  stop_at = lambda step: lambda: steps.append(0) or len(steps) >= step
  with pytest.raises(train.Interrupted):
    train.train(made, tmp_path, stop=stop_at(12))  # past the scores of step 6
  steps.clear()
  with pytest.raises(train.Interrupted) as stopped:
    train.train(made, tmp_path, stop=stop_at(2))
  assert 6 < stopped.value.step < 12
  assert "swd</td>" in (tmp_path / "report.html").read_text()


def test_a_page_that_cannot_be_written_ends_no_training(
  tmp_path, monkeypatch, caplog, shared_programs
):
  original = run_report.write

  def full(exp, record, workdir, scores, notes=()):
    if not (workdir / "scores.json").exists():  # which is written before the page of the end
      raise OSError(28, "No space left on device")
    return original(exp, record, workdir, scores, notes)

  monkeypatch.setattr(run_report, "write", full)
  train.train(tiny.experiment_of(), tmp_path)
  assert "The page of this run could not be written" in caplog.text
  assert (tmp_path / "report.html").exists()  # of the end


def test_data_that_cannot_be_drawn_end_no_training(tmp_path, monkeypatch, caplog, shared_programs):
  monkeypatch.setattr(experiment, "real_samples", lambda *args: np.full((4, 2), np.nan))
  train.train(tiny.experiment_of(), tmp_path)
  assert "shows no training samples: 8 of 8 values are not finite" in caplog.text
  assert (tmp_path / "report.html").exists()


def test_a_signal_says_that_the_same_command_goes_on(tmp_path, caplog, shared_programs):
  calls = []
  stop = lambda: calls.append(0) or len(calls) == 4
  with pytest.raises(train.Interrupted):
    train.train(tiny.experiment_of(evals={}), tmp_path, stop=stop)
  assert (
    "Interrupted at step 3 of 12. It is saved. The same command goes on from there." in caplog.text
  )
  assert "Interrupted at step 3" in (tmp_path / "report.html").read_text()


def test_every_curve_of_a_run_has_a_sentence(tmp_path, shared_programs):
  """Of whatever a training records: a new metric needs one too."""
  made = tiny.experiment_of()
  train.train(made, tmp_path)
  text = (tmp_path / "report.html").read_text()
  cards = re.findall(r'<h3>([^<]*)</h3>.*?</div>(<p class="soft">)?', text.split(">Curves<")[1])
  assert len(cards) > 15 and not [title for title, said in cards if not said]


def test_every_score_has_words():
  """Of whatever evaluators the pages have."""
  for name in pages.names():
    for label, section in pages.load(name).to_dict()["evals"].items():
      values = [v for v in ("", *_values(section)) if v or section["name"] != "samples"]
      for value in values:
        assert sentences.score(section, value), (name, label, value)


def _values(section):
  known = {"precision_recall": ("precision", "recall"), "density_coverage": ("density", "coverage"),
           "kernel": ("kernel",), "sfid": ("sfid",),
           "inception_score": ("inception_score",), "frechet": ()}  # fmt: skip
  return [value for score in section.get("scores", ()) for value in known[score]]


def test_few_held_out_images_make_a_floor_that_is_too_high():
  assert "too high" in sentences.floor(355, 2_000) and "355 real images" in sentences.floor(355, 2)
  assert "too high" not in sentences.floor(2_000, 2_000) and sentences.floor(None, None)


def test_every_metric_that_a_loss_reports_has_a_sentence():
  """By the source: a dict's keys with a mean, and the names of means by time."""
  package = pathlib.Path(sentences.__file__).parents[1]
  names = set()
  for path in (*(package / "losses").glob("*.py"), package / "training" / "step.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        names |= {key.value for key, value in pairs if key and "means.mean(" in ast.unparse(value)}
      if isinstance(node, ast.Call) and ast.unparse(node.func) == "means.by_time":
        names |= {node.args[0].value, f"{node.args[0].value}/t0.00-0.26"}
  assert {"loss", "vsd_gap", "sigma_ratio", "grad_norm", "tangent_norm/t0.00-0.26"} <= names
  one = (np.array([1]), np.array([1.0]))
  for kind in sentences.LOOK_AT:
    keys = [group.key for group in charts.groups(dict.fromkeys(names, one))]
    assert not [key for key in keys if key not in sentences.curves(kind)]


@pytest.mark.parametrize("method", experiment.METHODS)
def test_every_method_of_ours_has_its_words(method):
  assert run_summaries.kind(method) in sentences.LOOK_AT
  assert run_summaries.kind("my_package:mine") == ""
