"""Training in as many sittings as it takes: each ends with the state of one that was never cut."""

import contextlib
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from cmjax import experiment
from cmjax.data import sources
from cmjax.experiment import evaluation
from cmjax.program import compiled_step, course, doctor, identity, train
from cmjax.run import checkpoint, commit, goodput
from helpers import tiny
from helpers.earlier_versions import as_before

ROOT = pathlib.Path(__file__).parents[2]
NAN = float("nan")
pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory):
  """A run of 12 steps that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("whole")
  scores = tiny.train(tiny.config(), workdir)
  return workdir, scores


@pytest.fixture(name="expected", scope="module")
def _expected(whole):
  """The state that such a run ends with."""
  return tiny.state(whole[0])


# A run whose state counts alone: it saves at the end.
STATE_ALONE = {"evals": {}, "checkpoint.every_steps": 12}


def history(workdir):
  """The records, but for those that only say where the time went."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  bare = {"step", "time", "wall_sec", *(f"goodput/{kind}" for kind in goodput.KINDS)}
  records = map(json.loads, lines)
  return [r for r in records if "wall_sec" not in r or r.keys() - bare]


def at_step(monkeypatch, step, action):
  """Calls action(batch) -> batch on the batch that update number `step` (from 0) is made of."""
  original = experiment.batches

  def batches(config, mesh, start, data):
    for i, batch in enumerate(original(config, mesh, start, data), start):
      yield action(batch) if i == step else batch

  monkeypatch.setattr(experiment, "batches", batches)


def poison(batch):
  return {name: x * NAN for name, x in batch.items()}


def terminate(batch):
  os.kill(os.getpid(), signal.SIGTERM)
  return batch


def test_a_run_leaves_all_that_it_promises(whole):
  workdir, scores = whole
  for name in ("config.json", "metrics.jsonl", "scores.json", "report.html", "tensorboard"):
    assert (workdir / name).exists(), name
  assert json.loads((workdir / "config.json").read_text())["optim"]["lr"] == 1e-2
  assert json.loads((workdir / "scores.json").read_text()) == scores
  assert scores["swd/one_step/main"] > scores["swd/floor"] > 0
  table = (workdir / "parameters.txt").read_text()
  assert "net/fc_in/kernel" in table and "weighting/bias" in table
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "8"]
  pictures = [f"two_steps_main_{step:08d}.png" for step in (0, 6, 12)]
  assert sorted(p.name for p in (workdir / "samples").iterdir()) == ["real.png", *pictures]
  losses = [(r["step"], r["nonfinite"], r["skipped"]) for r in history(workdir) if "loss" in r]
  assert losses == [(step, 0, 0) for step in (2, 4, 6, 8, 10, 12)]
  assert [r["step"] for r in history(workdir) if "swd/floor" in r] == [6, 12]


def test_golden_losses_of_the_first_steps(whole):
  losses = [r["loss"] for r in history(whole[0]) if "loss" in r][:3]
  golden = [-0.237046, -0.452245, -0.526238]
  np.testing.assert_allclose(
    losses,
    golden,
    rtol=1e-5,
    err_msg="The numbers of training have moved. If that was meant (another default, draw of noise "
    "or order of batches), say so in CHANGELOG.md, since no old run can be repeated, and put the "
    "new numbers here. If not, find out which change did it.",
  )


def test_a_finished_run_started_again_only_reports(whole, expected, monkeypatch):
  workdir, scores = whole
  lines = history(workdir)
  (workdir / "report.html").unlink()
  monkeypatch.setattr(compiled_step, "compile_step", None)  # not one step is made
  again = tiny.train(tiny.config(), workdir)
  assert again == scores
  assert (workdir / "report.html").exists()
  assert history(workdir) == lines
  tiny.assert_same(tiny.state(workdir), expected)


def test_more_steps_go_on_and_fewer_are_refused(expected, tmp_path):
  tiny.train(tiny.config(total_steps=4, **STATE_ALONE), tmp_path)
  with pytest.raises(ValueError, match="at step 4 already, but total_steps=2. Raise it"):
    tiny.train(tiny.config(total_steps=2), tmp_path)
  tiny.train(tiny.config(total_steps=12, **STATE_ALONE), tmp_path)
  tiny.assert_same(tiny.state(tmp_path), expected)


@pytest.mark.parametrize("step", [5, 2])  # the next one has an evaluation due; is odd
def test_sigterm_saves_that_very_step_and_starting_again_ends_the_same(
  whole, expected, tmp_path, monkeypatch, step
):
  config = tiny.config(**{"checkpoint.every_steps": 12})
  with monkeypatch.context() as patch:
    at_step(patch, step, terminate)
    with pytest.raises(train.Interrupted) as caught:
      tiny.train(config, tmp_path)
  assert caught.value.code == train.INTERRUPTED == 75
  assert caught.value.step == step + 1
  assert tiny.state(tmp_path)["step"] == step + 1
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

  assert tiny.train(config, tmp_path) == whole[1]
  tiny.assert_same(tiny.state(tmp_path), expected)
  # Every record once; what was due at the step of the interruption is there, too.
  assert [r["step"] for r in history(tmp_path) if "loss" in r] == sorted(
    {2, 4, 6, 8, 10, 12, step + 1}
  )
  assert [r["step"] for r in history(tmp_path) if "swd/floor" in r] == [6, 12]


def test_an_evaluator_that_fails_costs_no_step_and_those_before_it_are_not_run_again(
  whole, expected, tmp_path, monkeypatch
):
  config = tiny.config(**{"evals.swd.every_steps": 4, "evals.grid.every_steps": 8})
  open_evaluators, ran = experiment.open_evaluators, []

  def failing(broken):
    def made(*args, **kwargs):
      def watched(label, evaluate):
        def run(ema, key):
          ran.append(label)
          if broken and label == "swd" and ran.count("swd") == 2:
            raise OSError("no space left")
          yield from evaluate(ema, key)

        return run

      return {k: watched(k, evaluate) for k, evaluate in open_evaluators(*args, **kwargs).items()}

    return made

  monkeypatch.setattr(experiment, "open_evaluators", failing(True))
  with pytest.raises(OSError, match="no space left"):
    tiny.train(config, tmp_path)
  assert ran == ["grid", "swd", "grid", "swd"]  # at 0, 4, 8, 8
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]
  assert [r["step"] for r in history(tmp_path) if "evaluation_sec/grid" in r] == [0, 8]
  assert [r["step"] for r in history(tmp_path) if "evaluation_sec/swd" in r] == [4]

  ran.clear()
  monkeypatch.setattr(experiment, "open_evaluators", failing(False))
  assert tiny.train(config, tmp_path) == whole[1]
  assert ran == ["swd", "grid", "swd"]  # at 8, 12, 12
  tiny.assert_same(tiny.state(tmp_path), expected)


def test_a_finished_run_called_again_makes_only_the_scores_that_are_not_there(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)

  def called(change):
    """The scores, and how many of each evaluator the history has at the last step."""
    config = tiny.config()
    change(config)
    scores = tiny.train(config, tmp_path)
    rows = [r for r in history(tmp_path) if r["step"] == 12]
    count = {label: sum(f"evaluation_sec/{label}" in r for r in rows) for label in config.evals}
    return scores, count

  def another(config):
    config.evals.fd = tiny.config("snapshots").evals.fd

  scores, count = called(another)
  assert count == {"grid": 1, "swd": 1, "fd": 1}
  assert scores.items() > whole[1].items() and scores["fd/one_step/main"] > 0

  scores, count = called(lambda config: config.evals.swd.update(num_samples=32))
  assert count == {"grid": 1, "swd": 2}
  assert scores.keys() == whole[1].keys() and scores != whole[1]

  _, count = called(lambda config: config.samplers.two_steps.update(mid_times=(0.9,)))
  assert count == {"grid": 2, "swd": 3}


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoints(
  tmp_path, monkeypatch
):
  # Update 8 (counted from 1) is at once one after which a checkpoint is due.
  config = tiny.config(log_every_steps=12)
  at_step(monkeypatch, 7, poison)
  with pytest.raises(FloatingPointError, match="step 8 is not finite .loss nan.*nonfinite='stop'"):
    tiny.train(config, tmp_path)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch, caplog):
  seen = []
  original = compiled_step.make_step_fn

  @functools.cache
  def watched(step_fn):
    def step(*args):
      state, metrics = step_fn(*args)
      jax.debug.callback(lambda *a: seen.append(a), state.step, state.params["net"])
      return state, metrics

    return step

  make_step_fn = lambda *args: watched(original(*args))
  monkeypatch.setattr(compiled_step, "make_step_fn", make_step_fn)
  at_step(monkeypatch, 4, poison)
  config = tiny.config(nonfinite="skip", log_every_steps=1, total_steps=8, **STATE_ALONE)
  with monkeypatch.context() as patch:
    at_step(patch, 5, terminate)
    with pytest.raises(train.Interrupted):
      tiny.train(config, tmp_path)
  tiny.train(config, tmp_path)

  assert "step 5 is not finite" in caplog.text and "Skipped it" in caplog.text
  lines = [r for r in history(tmp_path) if "skipped" in r]
  assert [(r["step"], r["skipped"]) for r in lines] == [
    *((step, 0) for step in range(1, 5)),
    *((step, 1) for step in range(5, 9)),  # over the interruption, too
  ]
  assert [r["step"] for r in lines if "loss" not in r] == [5]
  assert "Skipped steps" in (tmp_path / "report.html").read_text()
  params = {int(step): tiny.leaves(p) for step, p in seen}
  tiny.assert_same(params[4], params[5])
  assert not np.array_equal(params[5]["fc_out/kernel"], params[6]["fc_out/kernel"])


def test_the_step_is_traced_once_a_sitting(tmp_path, monkeypatch):
  traces = []
  original = compiled_step.make_loss

  def make_loss(*args):
    loss_fn = original(*args)

    def counted(*args):
      traces.append(1)
      return loss_fn(*args)

    return counted

  monkeypatch.setattr(compiled_step, "make_loss", make_loss)
  of_no_other_test = STATE_ALONE | {"optim.lr": 0.011}
  tiny.train(tiny.config(total_steps=5, **of_no_other_test), tmp_path)
  assert len(traces) == 1
  of_no_other_sitting = {"samplers.two_steps.mid_times": (0.9,)}
  config = tiny.config(total_steps=10, **of_no_other_test, **of_no_other_sitting)
  tiny.train(config, tmp_path)
  assert len(traces) == 2


def test_a_copy_between_host_and_device_inside_the_step_is_an_error(tmp_path, monkeypatch):
  at_step(monkeypatch, 1, lambda batch: jax.device_get(batch))
  with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
    tiny.train(tiny.config(evals={}), tmp_path)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"nonfinite": "ignore"}, r"policy .nonfinite. 'ignore'. Choose from: roll_back, skip, stop"),
    ({"loss.name": "scd"}, "distils a teacher: set teacher.workdir"),
    ({"checkpoint.every_steps": 0}, "checkpoint.every_steps=0 must be at least 1"),
    ({"evals.swd.every_steps": 0}, "evals.swd.every_steps=0 must be at least 1"),
    ({"mesh.data": 3}, "mesh=.* does not fit 1 devices"),
    ({"teacher.workdir": "nowhere"}, "teacher.workdir=nowhere has no checkpoints.*Train that run"),
    (
      {"init_from.workdir": "nowhere"},
      "init_from.workdir=nowhere has no .*random weights",
    ),
  ],
)
def test_what_cannot_be_fails_before_training(tmp_path, values, message):
  with pytest.raises(ValueError, match=message):
    tiny.train(tiny.config(**values), tmp_path)
  assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.devices
def test_a_batch_that_the_devices_do_not_divide_fails_before_training(tmp_path):
  with pytest.raises(ValueError, match="batch_size=12 .* the 8 devices. Nearest: 16"):
    tiny.train(tiny.config(batch_size=12), tmp_path)


def test_a_config_that_is_not_whole_lists_what_it_needs(tmp_path):
  config = tiny.config()
  del config.nonfinite
  with pytest.raises(ValueError, match="The config needs seed, .*; not there: nonfinite"):
    tiny.train(config, tmp_path)


@pytest.mark.parametrize(
  ("section", "values", "message"),
  [
    ("teacher", {"sigma_data": 0.4}, "with sigma_data=0.5, this run has 0.4. Set sigma_data=0.5"),
    ("init_from", {"sigma_data": 0.4}, "with sigma_data=0.5, this run has 0.4. Set sigma_data="),
    ("teacher", {"net.dim": 3}, "has net.dim=2, this run has 3. Take one .* on the same data"),
    ("teacher", {"net.num_classes": 3}, "has net.num_classes=None, this run has 3"),
    ("teacher", {"teacher.ema": "fast"}, "Unknown average .ema. of .* 'fast'. .* main, short"),
    ("init_from", {"init_from.ema": "fast"}, "Unknown average .ema. of .* 'fast'. .* main, short"),
  ],
)
def test_a_teacher_or_a_start_that_does_not_fit_is_refused(
  whole, tmp_path, section, values, message
):
  config = tiny.config(**{f"{section}.workdir": str(whole[0])})
  with config.unlocked():
    config.update_from_flattened_dict(values)
  with pytest.raises(ValueError, match=message):
    tiny.train(config, tmp_path)


def test_initial_weights_of_another_network_are_refused(whole, tmp_path):
  config = tiny.config(**{"init_from.workdir": str(whole[0]), "net.width": 24})
  message = r"init_from: .* does not fit this .*block0/affine/bias is \(16,\), this network's \(24,"
  with pytest.raises(ValueError, match=message):
    tiny.train(config, tmp_path)


def test_a_run_can_start_from_an_average_of_another(whole, expected, tmp_path):
  values = {"init_from.workdir": str(whole[0]), "init_from.ema": "short", "optim.lr": 0.0}
  tiny.train(tiny.config(evals={}, total_steps=1, **values), tmp_path)
  state = tiny.state(tmp_path)
  for name, x in expected.items():
    if name.startswith("ema/short/net"):
      np.testing.assert_array_equal(state[name.replace("ema/short", "params")], x)


def test_distilling_reads_the_teacher_and_changes_nothing_in_its_workdir(whole, tmp_path):
  def fingerprint():
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(whole[0].rglob("*"))}

  before = fingerprint()
  values = {"loss.name": "scd", "teacher.workdir": str(whole[0]), "teacher.ema": "main"}
  tiny.train(tiny.config(evals={}, total_steps=2, **values), tmp_path)
  assert fingerprint() == before
  # The teacher's velocity is not the data's: another run than sct's.
  losses = [[r for r in history(w) if "loss" in r][0]["loss"] for w in (tmp_path, whole[0])]
  assert abs(losses[0] - losses[1]) > 1e-3


def test_a_config_that_does_not_fit_the_checkpoint_says_where(whole):
  values = {
    "optim.lr": 2e-2,
    "loss.c": 0.2,
    "log_every_steps": 1,
    "samplers.one_step.sigma_max": 9.0,
  }
  config = tiny.config()
  with config.unlocked():
    config.update_from_flattened_dict(values)
  with pytest.raises(ValueError) as caught:
    tiny.train(config, whole[0])
  assert str(caught.value).splitlines() == [
    "The config does not fit the checkpoints in the workdir:",
    "  loss.c: 0.1 in the checkpoint, 0.2 now",
    "  optim.lr: 0.01 in the checkpoint, 0.02 now",
    "Take the old values, another --workdir, or --allow_config_change to go on with the new.",
  ]


def test_a_changed_config_goes_on_only_when_asked_and_is_on_record(tmp_path, caplog):
  values = STATE_ALONE | {"total_steps": 4}
  tiny.train(tiny.config(**values), tmp_path)
  values |= {"total_steps": 6, "optim.lr": 0.0}
  with pytest.raises(ValueError, match="optim.lr: 0.01 in the checkpoint, 0.0 now"):
    tiny.train(tiny.config(**values), tmp_path)
  tiny.train(tiny.config(**values), tmp_path, allow_config_change=True)
  assert "changed config: optim.lr: 0.01 in the checkpoint, 0.0 now" in caplog.text
  lines = (tmp_path / "config_changes.jsonl").read_text().splitlines()
  record = {"step": 4, "changes": {"optim.lr": {"old": 0.01, "new": 0.0}}}
  assert [json.loads(line) for line in lines] == [record]
  assert [r["lr"] for r in history(tmp_path) if "lr" in r] == pytest.approx([0.01, 0.01, 0.0])

  caplog.clear()
  tiny.train(tiny.config(**values | {"total_steps": 8}), tmp_path)  # now it is the run's own
  assert "changed config" not in caplog.text
  with pytest.raises(ValueError) as caught:
    tiny.train(tiny.config(**values | {"net.width": 24}), tmp_path, allow_config_change=True)
  first, second, *_ = str(caught.value).splitlines()
  assert first == "The changed config makes another state: 45 arrays differ, such as"
  assert second == "  ema/main/blocks/block0/affine/bias: (16,) in the checkpoint, (24,) now"
  assert tiny.state(tmp_path)["step"] == 8


def test_data_that_has_lost_an_element_is_refused(whole, monkeypatch):
  original = experiment.opened

  def opened(given, split="train"):
    data = original(given, split)
    return sources.ArraySource(data.take(np.arange(len(data) - 1))["image"])

  monkeypatch.setattr(experiment, "opened", opened)
  with pytest.raises(ValueError, match=r"data .number of examples.: 512 in the checkp.*, 511 now"):
    tiny.train(tiny.config(), whole[0])


def test_a_state_that_is_not_finite_never_becomes_a_checkpoint(tmp_path, monkeypatch):
  original = compiled_step.compile_step

  def compile_step(*args):
    compiled = original(*args)

    def step(state, *args):
      number = int(state.step) + 1
      state, metrics = compiled.program(state, *args)
      if number == 8:  # the update itself: loss and gradient were good
        state = state.replace(params=jax.tree.map(lambda x: x * np.inf, state.params))
      return state, metrics

    return compiled._replace(program=step)

  config = tiny.config(evals={}, nonfinite="skip")
  with monkeypatch.context() as patch:
    patch.setattr(compiled_step, "compile_step", compile_step)
    patch.setattr(jax, "transfer_guard", lambda level: contextlib.nullcontext())
    with pytest.raises(FloatingPointError, match="state of step 8 is not finite, .*was not saved"):
      tiny.train(config, tmp_path)
  assert tiny.state(tmp_path)["step"] == 4
  tiny.train(config, tmp_path)
  assert tiny.state(tmp_path)["step"] == 12


@pytest.mark.parametrize("gone", ["checkpoints/4", "checkpoints"])
def test_what_is_deleted_under_the_run_is_missed_by_nobody(expected, tmp_path, monkeypatch, gone):
  def await_the_first(batch):
    while not (tmp_path / "checkpoints" / "4").exists():
      time.sleep(0.01)
    return batch

  def delete(batch):
    assert (tmp_path / gone).exists()
    shutil.rmtree(tmp_path / gone)
    return batch

  at_step(monkeypatch, 4, await_the_first)
  at_step(monkeypatch, 7, delete)
  tiny.train(tiny.config(evals={}), tmp_path)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["12", "8"]
  tiny.assert_same(tiny.state(tmp_path), expected)


def test_a_run_whose_workdir_is_renamed_stops_with_a_word_and_goes_on_where_it_is_now(
  expected, tmp_path, monkeypatch
):
  config = tiny.config(evals={})
  workdir, away = tmp_path / "run", tmp_path / "away"

  def rename(batch):
    while not (workdir / "checkpoints" / "4").exists():  # it is written meanwhile
      time.sleep(0.01)
    workdir.rename(away)
    return batch

  with monkeypatch.context() as patch:
    at_step(patch, 6, rename)
    with pytest.raises(OSError, match="The workdir .*/run was renamed, removed or replaced while"):
      tiny.train(config, workdir)
  assert not workdir.exists()  # nothing was made anew in its place
  assert [r["step"] for r in history(away)][-1] in (4, 6)
  tiny.train(config, away)
  tiny.assert_same(tiny.state(away), expected)


def test_a_run_goes_on_from_checkpoints_of_an_earlier_version_to_the_same_bits(
  expected, tmp_path, monkeypatch, caplog
):
  with monkeypatch.context() as patch:
    at_step(patch, 7, terminate)
    with pytest.raises(train.Interrupted):
      tiny.train(tiny.config(evals={}), tmp_path)
  as_before(tmp_path, 4, sealed=True)
  as_before(tmp_path, 8, sealed=False)
  tiny.train(tiny.config(evals={}), tmp_path)
  assert "checkpoints/8 is unverified: it has no digests" in caplog.text
  there = [path.parent.name for path in (tmp_path / "checkpoints").glob(f"*/{checkpoint.DIGESTS}")]
  assert there == ["12"] and not (tmp_path / "seals" / "8.json").exists()
  tiny.assert_same(tiny.state(tmp_path), expected)


@pytest.fixture(name="start")
def _start():
  """Starts a run in a process of its own, which is ended with the test."""
  processes = []

  def start(workdir):
    command = [sys.executable, "-m", "cmjax.main", "--config=tests/helpers/tiny.py:long"]
    log = open(workdir / "log", "a")
    process = subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, stderr=log)
    processes.append((process, log))
    return process

  yield start
  for process, log in processes:
    process.kill()
    process.wait()
    log.close()


def wait_for(process, workdir, condition):
  """Until condition() holds; fails if the process ends first."""
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None and time.monotonic() < deadline, (workdir / "log").read_text()
    time.sleep(0.0005)


def kill_while_saving(process, workdir):
  def saving():
    if not list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")):
      return False
    # The save may just have ended: look again once it can not.
    process.send_signal(signal.SIGSTOP)
    if list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")):
      return True
    process.send_signal(signal.SIGCONT)
    return False

  saved = lambda: list((workdir / "checkpoints").glob("[0-9]*[0-9]"))
  wait_for(process, workdir, lambda: saved() and saving())
  process.kill()
  process.wait()


def kill_at_random(process, workdir):
  before = (workdir / "metrics.jsonl").stat().st_size
  wait_for(process, workdir, lambda: (workdir / "metrics.jsonl").stat().st_size != before)
  time.sleep(random.Random(0).uniform(0, 0.1))
  assert process.poll() is None
  process.kill()
  process.wait()


@pytest.mark.slow
def test_a_run_killed_while_saving_and_again_at_random_ends_bit_for_bit_the_same(tmp_path, start):
  whole, killed, other = (tmp_path / name for name in ("whole", "killed", "other"))
  killed.mkdir()
  tiny.train(tiny.get_config("long"), whole)
  tiny.train(tiny.config("long", seed=1), other)

  kill_while_saving(start(killed), killed)
  assert list((killed / "checkpoints").glob("*.orbax-checkpoint-tmp"))
  kill_at_random(start(killed), killed)
  newest = tiny.state(killed)["step"]
  assert 0 < newest < 200
  tiny.train(tiny.get_config("long"), killed)

  tiny.assert_same(tiny.state(killed), tiny.state(whole))
  losses = [[(r["step"], r["loss"]) for r in history(w) if "loss" in r] for w in (killed, whole)]
  assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
  with pytest.raises(AssertionError, match="arrays differ"):  # the comparison can fail
    tiny.assert_same(tiny.state(other), tiny.state(whole))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_next_step_waits_for_the_checkpoint_only_when_asked(
  tmp_path, monkeypatch, asynchronous
):
  """Else whoever is killed meanwhile loses more than an interval, or the loop is held up."""
  there, original, complete = {}, course.Course.next_batches, commit._complete
  gone_on = {4: threading.Event(), 8: threading.Event()}

  def next_batches(self, count):
    there[self.step] = (tmp_path / "checkpoints" / str(self.step)).exists()
    if self.step in gone_on:
      gone_on[self.step].set()
    return original(self, count)

  def held_up(digests, whole, step):
    if asynchronous and int(step.name) in gone_on:
      assert gone_on[int(step.name)].wait(30)
    complete(digests, whole, step)

  monkeypatch.setattr(commit, "_complete", held_up)
  monkeypatch.setattr(course.Course, "next_batches", next_batches)
  tiny.train(tiny.config(evals={}, **{"checkpoint.asynchronous": asynchronous}), tmp_path)
  assert (there[4], there[8]) == (not asynchronous, not asynchronous)


# --- roll back, and several steps in a dispatch --------------------------------------------------


def test_a_loss_that_is_not_finite_is_rolled_back_and_the_run_can_still_be_cut(
  tmp_path, monkeypatch, caplog
):
  at_step(monkeypatch, 6, poison)
  config = tiny.config(nonfinite="roll_back", log_every_steps=1, evals={})
  tiny.train(config, tmp_path / "whole")
  assert "The first nan is in the argument batch/image" in caplog.text
  assert "Rolled back to step 4, as asked (1 so far)" in caplog.text
  with monkeypatch.context() as patch:
    # Batches 4 to 6 are left out: that of update 10 (from 0) has the number 13.
    at_step(patch, 13, terminate)
    with pytest.raises(train.Interrupted):
      tiny.train(config, tmp_path / "cut")
  tiny.train(config, tmp_path / "cut")
  tiny.assert_same(tiny.state(tmp_path / "cut"), tiny.state(tmp_path / "whole"))
  for name in ("cut", "whole"):
    counted = {r["step"]: r["rolled_back"] for r in history(tmp_path / name) if "lr" in r}
    assert counted == {step: float(step > 4) for step in range(1, 13)}
  assert "Roll backs" in (tmp_path / "whole" / "report.html").read_text()


def test_what_comes_after_a_roll_back_is_made_of_other_batches_and_noise(
  expected, tmp_path, monkeypatch
):
  # Nothing but the noise differs where the poisoned batch is the last that there is to leave out.
  seen = []
  original = experiment.batches

  def batches(config, mesh, start, data):
    seen.append(start)
    return original(config, mesh, start, data)

  monkeypatch.setattr(experiment, "batches", batches)
  at_step(monkeypatch, 6, poison)
  tiny.train(tiny.config(nonfinite="roll_back", evals={}), tmp_path)
  assert seen == [0, 7]
  name = "params/net/fc_out/kernel"
  assert not np.array_equal(tiny.state(tmp_path)[name], expected[name])


def test_weights_that_are_not_finite_are_healed_by_the_checkpoint(tmp_path, monkeypatch, caplog):
  original = compiled_step.make_step_fn

  def make_step_fn(*args):
    step_fn = original(*args)

    def step(state, batch, key, frozen):
      state, metrics = step_fn(state, batch, key, frozen)
      # Once: the batch that is a mark of it is left out afterwards.
      bad = jax.numpy.where(jax.numpy.any(batch["image"] > 50.0), NAN, 0.0)
      net = jax.tree.map(lambda a: a + bad, state.params["net"])
      return state.replace(params=state.params | {"net": net}), metrics

    return step

  monkeypatch.setattr(compiled_step, "make_step_fn", make_step_fn)
  at_step(monkeypatch, 5, lambda batch: {name: x + 100.0 for name, x in batch.items()})
  tiny.train(tiny.config(nonfinite="roll_back", evals={}, total_steps=8), tmp_path)
  assert "The first nan is in the argument params/net/" in caplog.text
  assert all(np.isfinite(a).all() for a in tiny.state(tmp_path).values())


def test_a_run_that_always_fails_is_given_up(tmp_path, monkeypatch):
  original = experiment.batches
  monkeypatch.setattr(experiment, "batches", lambda *args: (poison(b) for b in original(*args)))
  with pytest.raises(FloatingPointError, match=r"Rolled back to step 0 3 times already"):
    tiny.train(tiny.config(nonfinite="roll_back", evals={}), tmp_path)


def test_too_many_skipped_in_a_row_end_a_run(tmp_path, monkeypatch):
  original = experiment.batches
  monkeypatch.setattr(experiment, "batches", lambda *args: (poison(b) for b in original(*args)))
  monkeypatch.setattr(doctor, "MOST_SKIPPED", 3)
  with pytest.raises(FloatingPointError, match="but so were the 3 steps before it"):
    tiny.train(tiny.config(nonfinite="skip", evals={}), tmp_path)


@pytest.mark.parametrize("policy", ["warn", "roll_back", "stop"])
def test_a_spike_is_handled_as_asked(tmp_path, monkeypatch, caplog, policy):
  monkeypatch.setattr(doctor, "LEAST", 3)
  at_step(monkeypatch, 6, lambda batch: {name: x * 1e4 for name, x in batch.items()})
  values = {"doctor.on_spike": policy, "total_steps": 8}
  config = tiny.config(log_every_steps=1, evals={}, **values)
  run = lambda: tiny.train(config, tmp_path)
  if policy == "stop":
    with pytest.raises(FloatingPointError, match=r"Step 7: .*doctor.on_spike='stop'"):
      run()
    return
  run()
  if policy == "warn":
    assert "Spike. Step 7: " in caplog.text
    assert history(tmp_path)[-1]["spikes"] >= 1
  else:
    assert "Rolled back to step 4" in caplog.text
    assert history(tmp_path)[-1]["rolled_back"] == 1


def test_the_probe_is_recorded_at_its_steps(tmp_path):
  config = tiny.config(**STATE_ALONE, **{"doctor.probe_every_steps": 6})
  tiny.train(config, tmp_path)
  rows = {r["step"]: r["jvp_error"] for r in history(tmp_path) if "jvp_error" in r}
  assert rows.keys() == {0, 6, 12}
  assert rows[0] == 0 and 0 < rows[12] < 1e-3


@pytest.mark.slow
def test_snapshots_of_what_was_rolled_back_are_made_again(tmp_path, monkeypatch):
  at_step(monkeypatch, 7, poison)
  config = tiny.config("snapshots", nonfinite="roll_back", evals={})
  tiny.train(config, tmp_path)
  assert sorted(int(p.name) for p in (tmp_path / "snapshots").iterdir()) == [2, 4, 6, 8, 10, 12]
  assert len(list((tmp_path / "snapshots").glob(f"*/{checkpoint.DIGESTS}"))) == 6


def test_several_steps_in_a_dispatch_are_the_same_steps(whole, expected, tmp_path):
  tiny.train(tiny.config(steps_per_dispatch=2), tmp_path)
  ours = tiny.state(tmp_path)
  for name, array in expected.items():
    np.testing.assert_allclose(ours[name], array, rtol=2e-4, atol=1e-5, err_msg=name)
  steps = lambda workdir: [r["step"] for r in history(workdir) if "loss" in r]
  assert steps(tmp_path) == steps(whole[0])
  losses = lambda workdir: [r["loss"] for r in history(workdir) if "loss" in r]
  np.testing.assert_allclose(losses(tmp_path), losses(whole[0]), rtol=1e-4)


def test_a_step_of_a_dispatch_that_is_not_finite_is_told_from_the_others(
  tmp_path, monkeypatch, caplog
):
  at_step(monkeypatch, 4, poison)
  values = STATE_ALONE | {"total_steps": 6}
  tiny.train(tiny.config(steps_per_dispatch=2, nonfinite="skip", **values), tmp_path)
  assert "step 5 is not finite" in caplog.text and "step 6 is not" not in caplog.text
  assert history(tmp_path)[-1]["skipped"] == 1


@pytest.mark.parametrize("key", ["log_every_steps", "checkpoint.every_steps", "total_steps"])
def test_what_falls_within_a_dispatch_is_refused(tmp_path, key):
  config = tiny.config(steps_per_dispatch=2, **{key: 9 if key == "total_steps" else 3})
  with pytest.raises(ValueError, match=f"{key}=[39] must be a multiple of steps_per_dispatch=2"):
    tiny.train(config, tmp_path)


def test_how_a_step_is_computed_may_change_between_sittings_and_what_is_not():
  meta = {"config": tiny.config().to_dict()}
  config = tiny.config(microbatch=8, steps_per_dispatch=2)
  with config.unlocked():
    config.net.remat, config.net.scan, config.net.attention = True, True, "xla"
  identity.check_same_run(config.to_dict(), meta, identity={})
  config.net.width = 8
  with pytest.raises(ValueError, match=r"net.width: 16 in the snapshot, 8 now\n"):
    identity.check_same_run(config.to_dict(), meta, identity={})


def test_the_reference_of_a_run_is_made_in_its_first_sitting_alone(tmp_path, monkeypatch):
  config = tiny.config("snapshots", total_steps=12)
  made, seen = [], evaluation._data_reference
  monkeypatch.setattr(evaluation, "_data_reference", lambda *args: made.append(1) or seen(*args))
  before = tiny.train(tiny.config("snapshots", total_steps=6), tmp_path)
  (kept,) = (tmp_path / "references").iterdir()
  assert len(made) == 1 and kept.suffix == ".npz"
  tiny.train(config, tmp_path)
  assert len(made) == 1  # and at two steps
  kept.unlink()
  again = tiny.train(tiny.config("snapshots", total_steps=6), tmp_path / "again")
  assert again == before
  other = tiny.config("snapshots", total_steps=6, **{"data.toy2d.num_points": 256})
  tiny.train(other, tmp_path / "other")
  assert len(made) == 3
