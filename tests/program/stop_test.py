"""Being asked to stop: by signals, and in a thread by a function."""

import contextlib
import json
import os
import signal
import threading

import numpy as np
import pytest

from cmjax.losses import means
from cmjax.program import doctor, sitting, train
from helpers import tiny


@contextlib.contextmanager
def handled(number, handler):
  """A signal with that handler from the start."""
  before = signal.signal(number, handler)
  try:
    yield
  finally:
    signal.signal(number, before)


@pytest.mark.parametrize("number", sitting.ASKING, ids=lambda number: number.name)
def test_every_signal_that_asks_to_go_is_heard_and_its_handler_put_back(number):
  # Of a process that a shell starts in the background SIGINT and SIGQUIT are ignored.
  with handled(number, signal.SIG_DFL):
    with sitting.interruption() as why:
      assert why() is None
      signal.raise_signal(number)
      assert why() == number.name
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_interrupt_of_the_keyboard_ends_it_at_once():
  with handled(signal.SIGHUP, signal.SIG_DFL):
    with sitting.interruption() as why, contextlib.suppress(KeyboardInterrupt):
      signal.raise_signal(signal.SIGHUP)
      signal.raise_signal(signal.SIGINT)
      pytest.fail("it went on")
    assert why() == "SIGHUP"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda number, frame: None])
def test_what_is_ignored_or_heard_by_somebody_else_stays_so(number, own):
  with handled(number, own), sitting.interruption() as why:
    signal.raise_signal(number)
    assert why() is None and signal.getsignal(number) is own


def in_thread(work):
  """What a function gives, or raises, in a thread of its own."""
  found = []

  def run():
    try:
      found.append(work())
    except BaseException as error:  # SystemExit too, which a thread swallows
      found.append(error)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  return found[0]


def test_outside_the_main_thread_there_are_no_handlers_but_the_function():
  handlers = [signal.getsignal(number) for number in sitting.ASKING]
  answers = iter((False, True))

  def listen():
    with sitting.interruption(lambda: next(answers)) as why:
      same = handlers == [signal.getsignal(number) for number in sitting.ASKING]
      return same, why(), why()

  assert in_thread(listen) == (True, None, "Asked to stop")


def test_a_run_stops_when_told_in_a_thread_and_saves_when_its_terminal_is_closed(
  tmp_path, shared_programs
):
  calls = []
  made = tiny.experiment_of(evals={})
  stop = lambda: calls.append(0) or len(calls) == 4
  stopped = in_thread(lambda: train.train(made, tmp_path, stop=stop))
  assert isinstance(stopped, train.Interrupted) and (stopped.step, stopped.code) == (3, 75)
  assert (tmp_path / "checkpoints" / "3").is_dir()

  def hang_up():
    calls.append(0)
    if len(calls) == 7:
      os.kill(os.getpid(), signal.SIGHUP)
    return False

  with handled(signal.SIGHUP, signal.SIG_DFL), pytest.raises(train.Interrupted) as hung_up:
    train.train(made, tmp_path, stop=hang_up)
  assert (tmp_path / "checkpoints" / str(hung_up.value.step)).is_dir()
  assert hung_up.value.step in (5, 6) and len(calls) in (7, 8)


def test_a_run_that_is_told_in_an_evaluation_ends_it_between_two_batches(tmp_path, shared_programs):
  def train_to(workdir, call):
    """Trains until the function is asked for that time."""
    calls = iter(range(1, 1000))
    return in_thread(lambda: train.train(made, workdir, stop=lambda: next(calls) == call))

  def scored(label):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if f"evaluation_sec/{label}" in line]

  made, workdir = tiny.experiment_of(), tmp_path / "run"
  # Asked at step 0 and for its grid, at steps 1 to 6, for the grid there, and for two batches.
  stopped = train_to(workdir, 11)
  assert isinstance(stopped, train.Interrupted) and stopped.step == 6
  assert (workdir / "checkpoints" / "6").is_dir() and (scored("grid"), scored("swd")) == (
    [0, 6],
    [],
  )
  # Then for the two batches, at steps 7 to 12, and for the grid at the last.
  stopped = train_to(workdir, 1 + 2 + 6 + 1)
  assert isinstance(stopped, train.Interrupted) and stopped.step == 12
  assert (scored("grid"), scored("swd")) == ([0, 6], [6])
  scores = train_to(workdir, 999)
  assert (scored("grid"), scored("swd")) == ([0, 6, 12], [6, 12])
  assert scores == train_to(tmp_path / "whole", 999)
  tiny.assert_same(tiny.state(workdir), tiny.state(tmp_path / "whole"))

  # At the last step with nothing left to do, a signal changes nothing.
  made = tiny.experiment_of(evals={})
  assert train_to(tmp_path / "bare", 13) == {}


# --- warnings ---


def test_of_many_warnings_the_first_few_are_told_and_then_few():
  told = [count for count in range(1, 2_001) if doctor.is_told(count)]
  assert told == [1, 2, 3, 10, 100, 1000]


@pytest.mark.parametrize("policy", ["spikes", "skipped"])
def test_five_hundred_spikes_are_a_handful_of_lines(policy, caplog):
  run = tiny.experiment_of(**{"nonfinite": "skip", "doctor.spike_factor": 2.0}).run
  window = doctor.Window(run, lambda step, batch: "Somewhere.")
  mean = lambda total: means.Mean(np.float32(total), np.float32(1))
  one = lambda grad, bad: {
    "loss": mean(1.0), "grad_norm": mean(grad), "nonfinite": mean(float(bad))
  }  # fmt: skip
  for step in range(1, 30):
    window.add(step, one(1.0, False), ({},))
  for step in range(30, 530):
    bad = policy == "skipped" and step % 5 > 0  # not too many in a row
    window.add(step, one(1.0 if policy == "skipped" else 9.0, bad), ({},))
  scalars = window.flush()
  lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
  assert scalars[policy] == (500 if policy == "spikes" else 400) and len(lines) == 5
  assert f"The next that is told is number 1,000; metrics.jsonl counts them: {policy}." in lines[-1]
