"""Several processes are one run: local ones with simulated devices, over gloo on the loopback."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.program import stored_runs, train
from helpers import tiny, watched

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.devices  # one process is compared with the devices of several
VALUES = {
  "total_steps": 20, "batch_size": 64, "net.width": 128, "mesh.data": 2, "mesh.fsdp": 4,
  "optim.lr": 1e-3,
}  # fmt: skip


class Processes:
  """`count` processes of one run of tests/helpers/tiny.py, with eight devices together.

  Each writes its rows of every batch to a file of its own (tests/helpers/watched.py).
  """

  started: list[subprocess.Popen] = []

  def __init__(self, workdir, count, variant="long", **values):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    overrides = [f"--config.{key}={value}" for key, value in (VALUES | values).items()]
    environment = os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
      "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
      "PYTHONPATH": str(ROOT),
    }
    self.logs = [workdir.with_suffix(f".{i}.log") for i in range(count)]
    self.rows = [workdir.with_suffix(f".{i}.rows") for i in range(count)]
    self.all = []
    for i, log in enumerate(self.logs):
      command = [
        *(sys.executable, str(ROOT / "tests" / "helpers" / "watched.py"), str(self.rows[i])),
        f"--config={ROOT / 'tests' / 'helpers' / 'tiny.py'}:{variant}",
        *(f"--workdir={workdir}", f"--coordinator=localhost:{port}", f"--num_processes={count}"),
        *(f"--process_id={i}", *overrides),
      ]
      with log.open("w") as out:
        self.all.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    self.started.extend(self.all)

  def wait_for(self, text, process=0, seconds=300):
    """Until the log of a process has this text."""
    deadline = time.monotonic() + seconds
    while text not in self.logs[process].read_text(errors="replace"):
      assert time.monotonic() < deadline and self.all[process].poll() is None, self.said()
      time.sleep(0.1)

  def wait_until(self, reached, seconds=300):
    """Until a condition holds."""
    deadline = time.monotonic() + seconds
    while not reached():
      alive = all(process.poll() is None for process in self.all)
      assert time.monotonic() < deadline and alive, self.said()
      time.sleep(0.05)

  def stopped_at(self, process=1, seconds=60):
    """The step at which all stop after a signal to one of them."""
    self.all[process].send_signal(signal.SIGTERM)
    assert self.exit_codes(seconds) == [train.INTERRUPTED] * len(self.all), self.said()
    (step,) = {log.read_text().split("saving step ")[1].split(",")[0] for log in self.logs}
    return int(step)

  def exit_codes(self, seconds=300):
    return [process.wait(seconds) for process in self.all]

  def said(self):
    return "\n".join(log.read_text(errors="replace")[-2000:] for log in self.logs)


@pytest.fixture(autouse=True)
def _none_is_left():
  """Of the processes of a test that fails."""
  yield
  for process in Processes.started:
    process.kill()
    process.wait()
  Processes.started.clear()


def leaves(workdir):
  state = stored_runs.load_state(workdir, sharding.make_mesh()).state
  return {name: np.asarray(a) for name, a in tiny.leaves(jax.device_get(state)).items()}


def all_rows(files):
  """{step: {row: digest}} of several processes; no two of them have the same row."""
  together = {}
  for file in files:
    for step, digests in map(json.loads, file.read_text().splitlines()):
      known = together.setdefault(step, {})
      assert not known.keys() & digests.keys()
      known |= digests
  return together


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_processes_stop_at_one_step_go_on_and_equal_one_process(tmp_path, monkeypatch, count):
  """One gets SIGTERM, all save the same step; as many go on, or one does: one run, row by row."""
  workdir = tmp_path / "many"
  first = Processes(workdir, count, total_steps=100_000)
  first.wait_for("Compiled", process=1)
  first.all[1].send_signal(signal.SIGTERM)
  assert first.exit_codes() == [train.INTERRUPTED] * count, first.said()
  (stopped,) = (int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name != "0")
  assert all(f"saving step {stopped}" in log.read_text() for log in first.logs)
  shutil.copytree(workdir, tmp_path / "fewer")

  total = max(20, stopped + 10)
  second = Processes(workdir, count, total_steps=total)
  assert second.exit_codes() == [0] * count, second.said()
  assert f"Starting at step {stopped} of {total}" in second.logs[1].read_text()
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  of_training = [line for line in lines if "loss" in line]
  steps = [line["step"] for line in of_training]
  assert steps == sorted(set(steps)) and steps[-1] == total  # of one writer
  assert all(line["slowest_host"] in range(count) for line in of_training[1:])
  assert "[1/" in second.logs[1].read_text() and "[0/" not in second.logs[1].read_text()

  config, seen = tiny.config("long", **VALUES | {"total_steps": total}), {}
  watcher = watched.watching(
    experiment.batches, lambda step, digests: seen.setdefault(step, digests)
  )
  with monkeypatch.context() as patch:
    patch.setattr(experiment, "batches", watcher)
    tiny.train(config, tmp_path / "one")
  tiny.train(config, tmp_path / "fewer")

  expected = {step: {str(row): digest for row, digest in seen[step].items()} for step in seen}
  assert [*expected] == [*range(total)] and all(len(r) == 64 for r in expected.values())
  assert all_rows(second.rows) == expected  # the first processes' are in the same files
  one = leaves(tmp_path / "one")
  for other in (leaves(workdir), leaves(tmp_path / "fewer")):
    assert set(one) == set(other)
    # To rounding: gloo adds in another order than one process does.
    for name, a in one.items():
      difference = np.linalg.norm(other[name] - a) / max(np.linalg.norm(a), 1e-8)
      assert difference < 1e-5, f"{name}: {difference:.1e}"


def steps_saved(workdir):
  folder = workdir / "checkpoints"
  return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.exists() else set()


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(1, marks=pytest.mark.soak)])
def test_a_signal_to_one_is_answered_after_a_save_right_after_a_resume_and_in_an_evaluation(
  tmp_path, count
):
  """However many steps a dispatch takes: what is counted are questions, and not orbax's."""
  workdir, values = tmp_path / "run", {"total_steps": 100_000, "steps_per_dispatch": count}
  values |= {"checkpoint.every_steps": 40, "log_every_steps": 40}
  first = Processes(workdir, 2, **values)
  first.wait_until(lambda: 80 in steps_saved(workdir))
  stopped = first.stopped_at()
  assert stopped > 80 and stopped % count == 0 and stopped in steps_saved(workdir)

  again = Processes(workdir, 2, **values)
  again.wait_for(f"Starting at step {stopped} of")
  assert again.stopped_at(process=0) in (stopped, stopped + count)

  # The last of what is written before the evaluation begins, which then takes minutes.
  scored = tmp_path / "scored"
  third = Processes(scored, 2, "scored", total_steps=200, steps_per_dispatch=count)
  history = scored / "metrics.jsonl"
  third.wait_until(lambda: history.exists() and '"step": 16' in history.read_text())
  time.sleep(2)
  assert third.stopped_at() == 16 and steps_saved(scored) == {16}
  assert "swd/" not in history.read_text()


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_and_both_can_go_on(tmp_path):
  workdir = tmp_path / "two"
  values = {"total_steps": 100_000, "checkpoint.every_steps": 5}
  first = Processes(workdir, 2, **values)
  deadline = time.monotonic() + 300
  while not (workdir / "checkpoints" / "5").exists():
    assert time.monotonic() < deadline, first.said()
    time.sleep(0.1)
  first.all[1].kill()
  codes = first.exit_codes(seconds=200)
  assert codes[1] == -signal.SIGKILL and codes[0] not in (0, train.INTERRUPTED), first.said()
  second = Processes(workdir, 2, **values)
  second.wait_for("Starting at step")
  text = second.logs[0].read_text()
  assert int(text.split("Starting at step ")[1].split()[0]) > 0
  second.all[0].send_signal(signal.SIGTERM)
  assert second.exit_codes() == [train.INTERRUPTED] * 2, second.said()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("localhost:1", None, 0), "coordinator=localhost:1, num_processes=None.* give all three"),
    ((None, 2, None), "give all three, or none"),
    (("localhost:1", 2, 2), "process_id=2 must be from 0 to 1"),
  ],
)
def test_half_an_address_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    sharding.start(*arguments)
