"""What is seen of a run while it runs: where its time goes, its trace, its share of the peak."""

import json
import logging
import time

import jax
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.commands import common
from cmjax.program import compiled_step, costs, plan, profiling, train
from cmjax.program.data_wait import DataWait
from cmjax.run import goodput
from helpers import tiny

pytestmark = pytest.mark.usefixtures("shared_programs")
ALONE = {"evals": {}, "checkpoint.every_steps": 4}


def records(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def ledger(workdir):
  """The seconds by kind of the newest record that has them; those of each record are all."""
  found = [line for line in records(workdir) if "wall_sec" in line]
  for line in found:
    shares = [line[f"goodput/{kind}"] for kind in goodput.KINDS]
    assert sum(shares) == pytest.approx(1, abs=1e-9) and min(shares) >= 0
  last = found[-1]
  return last["wall_sec"], {
    kind: last[f"goodput/{kind}"] * last["wall_sec"] for kind in goodput.KINDS
  }


def killed_at(monkeypatch, step):
  """A run that ends at this step as if it were killed: nothing more is written."""
  original = experiment.batches

  def batches(exp, mesh, start, data):
    for i, batch in enumerate(original(exp, mesh, start, data), start):
      if i == step:
        raise KeyboardInterrupt
      yield batch

  monkeypatch.setattr(experiment, "batches", batches)


@pytest.fixture(name="begun")
def _begun(monkeypatch):
  """The Unix seconds at which each sitting began."""
  times = []

  def ledger():
    times.append(time.time())
    return goodput.Goodput()

  monkeypatch.setattr(train, "Goodput", ledger)
  return times


def test_goodput_adds_up_over_a_kill_and_a_second_sitting(tmp_path, monkeypatch, begun):
  with monkeypatch.context() as patch:
    killed_at(patch, 7)
    with pytest.raises(KeyboardInterrupt):
      tiny.train(tiny.config(**ALONE), tmp_path)
  whole, first = ledger(tmp_path)
  end = max(line["time"] for line in records(tmp_path))
  assert whole == pytest.approx(end - begun[0], abs=0.1) and first["lost"] == first["away"] == 0
  assert {kind for kind, s in first.items() if s} >= {"start", "compiling", "steps", "saves"}
  time.sleep(0.3)
  tiny.train(tiny.config(**ALONE), tmp_path)
  whole, second = ledger(tmp_path)
  last = max(line["time"] for line in records(tmp_path))
  assert whole == pytest.approx(last - begun[0], abs=0.1)
  assert second["away"] == pytest.approx(begun[1] - end, abs=0.1) and second["away"] > 0.3
  assert 0 < second["lost"] < first["steps"] + first["data"]  # steps 5 and 6 of those up to 6
  page = (tmp_path / "report.html").read_text()
  assert "Share of wall time" in page and "Goodput" in page


def test_data_that_come_late_have_their_share(tmp_path, monkeypatch):
  original = experiment.batches

  def late(*args):
    for batch in original(*args):
      time.sleep(0.05)
      yield batch

  monkeypatch.setattr(experiment, "batches", late)
  tiny.train(tiny.config(**ALONE), tmp_path)
  _, seconds = ledger(tmp_path)
  assert 12 * 0.05 * 0.7 < seconds["data"]  # of 12 batches


def test_evaluators_have_their_share(tmp_path):
  tiny.train(tiny.config(), tmp_path)
  _, seconds = ledger(tmp_path)
  measured = sum(v for line in records(tmp_path) for k, v in line.items() if "evaluation_sec" in k)
  # With what is around them: the key of their noise, and the file that remembers them.
  assert 0 < measured - 0.01 < seconds["evaluations"] < measured + 1.0


# --- the share of the peak ---


def test_mfu_is_the_flops_of_a_step_by_its_time_and_the_peak(tmp_path, monkeypatch):
  chip = costs.CHIPS["v5e"]._replace(flops=1e9)
  monkeypatch.setattr(plan, "local_chip", lambda devices: chip)
  config = tiny.config(total_steps=400, steps_per_dispatch=2, log_every_steps=100, **ALONE)
  config.checkpoint.every_steps = 400
  exp = experiment.parse(config)
  tiny.train(config, tmp_path)
  traced = plan.trace_step(
    exp._replace(run=exp.run._replace(steps_per_dispatch=1)), sharding.make_mesh()
  )
  flops = sum(costs.count_flops(traced.jaxpr.jaxpr).values())
  found = [line for line in records(tmp_path) if "mfu" in line]
  assert found and flops > 0
  for line in found:
    assert line["mfu"] == pytest.approx(flops * line["steps_per_sec"] / 1e9)


def test_a_device_without_a_known_peak_has_none(tmp_path):
  values = {"checkpoint.every_steps": 400, "evals": {}}
  tiny.train(tiny.config(total_steps=400, log_every_steps=100, **values), tmp_path)
  lines = records(tmp_path)
  assert any("steps_per_sec" in line for line in lines)
  assert not any("mfu" in line for line in lines)


# --- waiting for data ---


class Running:
  """Steps that end so many seconds from now."""

  def __init__(self, seconds):
    self.end = time.monotonic() + seconds

  def is_ready(self):
    return time.monotonic() >= self.end

  def block_until_ready(self):
    time.sleep(max(0.0, self.end - time.monotonic()))


def test_a_wait_for_data_counts_from_when_the_devices_have_nothing_to_do():
  waits = DataWait()

  def idle(busy, fetch):
    waits.dispatched([Running(busy)])
    value, found = waits.fetch(lambda: time.sleep(fetch) or "batch")
    assert value == "batch"
    return found

  assert 0.05 <= idle(0.0, 0.05) < 5  # on a busy machine all of it takes longer
  assert idle(0.6, 0.05) == 0
  time.sleep(0.6)  # steps end in turn
  assert 0.1 < idle(0.05, 0.2) < 5
  assert waits.mean() > 0.15 / 3 and waits.mean() == 0
  waits.close()


def test_a_run_that_never_waits_starts_no_thread():
  waits = DataWait()
  for _ in range(3):
    waits.dispatched([Running(5.0)])
    assert waits.fetch(lambda: "batch") == ("batch", 0.0)
  assert waits._pool is None


# --- the trace ---


@pytest.mark.parametrize("at_once, expected", [(1, [4, 5, 6]), (2, [4, 6])])
def test_the_trace_has_the_steps_that_were_asked_for(tmp_path, at_once, expected):
  config = tiny.config(steps_per_dispatch=at_once, **ALONE)
  last = 7 if at_once == 1 else 8
  train.train(experiment.parse(config), tmp_path, profile_steps=(4, last))
  assert profiling.steps_in(tmp_path / "profile") == expected
  assert list((tmp_path / "profile").rglob("*.trace.json.gz"))  # for Perfetto


def test_a_trace_that_a_stop_cuts_short_is_written_all_the_same(tmp_path):
  calls = []
  stop = lambda: calls.append(0) or len(calls) == 7
  with pytest.raises(train.Interrupted):
    train.train(tiny.experiment_of(**ALONE), tmp_path, stop=stop, profile_steps=(4, 100))
  assert profiling.steps_in(tmp_path / "profile") == [4, 5]


def test_steps_that_are_past_are_named_and_not_traced(tmp_path, caplog):
  tiny.train(tiny.config(total_steps=4, **ALONE), tmp_path)
  train.train(tiny.experiment_of(**ALONE), tmp_path, profile_steps=(1, 3))
  assert "nothing is traced, since this run is at step 4 already" in caplog.text
  assert not (tmp_path / "profile").exists()


def test_the_parts_of_a_step_have_names():
  exp, mesh = tiny.experiment_of(), sharding.make_mesh()
  text = plan.trace_step(exp, mesh).lower().as_text(debug_info=True)
  assert all(name in text for name in ("jvp(loss)/tangent", "/optimizer/", "/averages/"))


@pytest.mark.parametrize("text", ["10", "15:10", "10:10", "a:b", "-1:3", "1:2:3", ""])
def test_a_mistyped_range_of_steps_is_refused(text):
  with pytest.raises(ValueError, match="must be two steps FIRST:LAST, the first below the last"):
    profiling.steps_of(text)


def test_a_range_of_steps_is_read():
  assert profiling.steps_of(" 10:15 ") == (10, 15) and profiling.steps_of(None) is None


# --- the log ---


def test_lines_of_several_processes_say_whose_they_are(caplog):
  logger = logging.getLogger("cmjax.of.this.test")
  logger.addFilter(common.Rank(3, 16))
  logger.warning("Step %d.", 7)
  assert caplog.messages == ["[3/16] Step 7."]


def test_numbers_of_one_process_are_those_of_all():
  np.testing.assert_array_equal(sharding.from_all([1.5, 2.0]), [[1.5, 2.0]])


def test_a_step_that_was_compiled_says_its_flops():
  exp, mesh = tiny.experiment_of(), sharding.make_mesh()
  state, batch, key, frozen = plan.abstract_arguments(exp, mesh)
  step_fn = compiled_step.make_step_fn(exp, experiment.transformation(exp))
  compiled = compiled_step.compile_step(step_fn, mesh, (state, batch, key, frozen), None)
  jaxpr = jax.make_jaxpr(step_fn)(state, batch, key, frozen).jaxpr
  assert compiled.flops == sum(costs.count_flops(jaxpr).values()) > 0
