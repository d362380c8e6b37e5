"""Launchers x what happens to a run: started, told to stop at four moments, killed in part, whole,
and again and again. The tools of clusters are stubs that run the commands as processes here."""

import collections
import os
import signal

import pytest

from helpers import launched

VALUES = {"total_steps": 100_000, "checkpoint.every_steps": 8, "log_every_steps": 40}


@pytest.fixture(name="launch")
def _launch(tmp_path):
  """Starts runs, of which nothing is left at the end."""
  started = []

  def start(launcher, name="", **options):
    started.append(launched.Launched(launcher, tmp_path / name, **options))
    return started[-1]

  yield start
  for run in started:
    run.clear()


def goes_on(run, act, seconds=120):
  """After `act` all processes are started again, from a checkpoint that was there."""
  before, newest = collections.Counter(run.starts()), max(run.saved(), default=0)
  act()
  run.until(lambda: len(run.starts()) >= before.total() + 2, seconds)
  (step,) = {*(collections.Counter(run.starts()) - before)}
  assert step >= newest


def trains(run, steps=16):
  """Until so many more steps are saved."""
  newest = max(run.saved(), default=0)
  run.until(lambda: max(run.saved(), default=0) >= newest + steps)


def is_saving(run):
  folder = run.workdir / "checkpoints"
  return any("orbax-checkpoint-tmp" in name for name in os.listdir(folder))


def told_in_a_step(run):
  trains(run)
  goes_on(run, lambda: run.send(signal.SIGTERM))


def told_in_a_compilation(run):
  """The processes have just said where they start, and compile."""
  goes_on(run, lambda: run.send(signal.SIGTERM))


def told_in_a_save(run):
  trains(run)
  run.until(lambda: is_saving(run))
  goes_on(run, lambda: run.send(signal.SIGTERM))


def one_is_killed(run):
  trains(run)
  goes_on(run, lambda: run.send(signal.SIGKILL), seconds=500)


def all_are_killed(run):
  trains(run)
  goes_on(run, lambda: run.send(signal.SIGKILL, 2), seconds=200)


def the_time_is_over(run):
  trains(run)
  said = run.text().count("starting again")
  scheduler = int((run.folder / "scheduler.pid").read_text())
  goes_on(run, lambda: os.kill(scheduler, signal.SIGUSR1))
  assert run.text().count("starting again") == said  # but queued again


def machines_are_taken_away(run):
  trains(run)

  def take():
    for path in run.folder.glob("host-*.pid"):
      os.killpg(int(path.read_text()), signal.SIGKILL)
    run.send(signal.SIGKILL, 2)
    (run.folder / "pod.state").write_text("SUSPENDED")

  before = max(run.saved())
  take()
  run.until(lambda: "SUSPENDED: making it again" in run.text())
  run.until(lambda: len(run.starts()) == 2)  # the logs of the new machines
  assert set(run.starts()) <= {s for s in run.saved() if s >= before}


def comes_to_nothing(run):
  """Killed each time before it saves: after three starts it is refused, and not started again."""
  trains(run)
  ended = lambda: run.process.poll() is not None
  while not ended():
    known = len(run.starts())
    run.send(signal.SIGKILL, 2)
    run.until(lambda known=known: len(run.starts()) > known or ended(), 200)
  assert run.code() != 0 and "3 starts in a row ended without a new checkpoint" in run.text()


OWN = {"slurm": (the_time_is_over,), "tpu_pod": (machines_are_taken_away,)}
# Where each host starts its own process, it must wait until the others have noticed a loss.
PATIENT = {"LOST_PAUSE": "120"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", pytest.param("jobset", marks=pytest.mark.soak)])
def test_a_launcher_starts_a_run_again_until_it_comes_to_nothing(launch, launcher):
  run = launch(launcher, **VALUES, steps_per_dispatch=8)
  told_in_a_step(run)
  for event in OWN.get(launcher, ()):
    event(run)
  comes_to_nothing(run)


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("launcher", launched.SCRIPTS)
def test_every_launcher_and_every_event(launch, launcher, count):
  ended = launch(launcher, "ended", **VALUES | {"total_steps": 40}, steps_per_dispatch=count)
  assert ended.code() == 0 and 40 in ended.saved(), ended.said()

  scored = {"total_steps": 200, "steps_per_dispatch": count}
  run = launch(launcher, "scored", variant="scored", **scored)
  history = run.workdir / "metrics.jsonl"
  run.until(lambda: history.exists() and '"step": 16' in history.read_text())
  goes_on(run, lambda: run.send(signal.SIGTERM))
  assert run.starts().count(16) == 2 and run.saved() == {16}
  run.clear()

  run = launch(launcher, "run", **VALUES, steps_per_dispatch=count)
  told_in_a_step(run)
  told_in_a_compilation(run)
  told_in_a_save(run)
  all_are_killed(run)
  for event in OWN.get(launcher, ()):
    event(run)
  comes_to_nothing(run)


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("launcher", launched.SCRIPTS)
def test_when_one_host_dies_every_launcher_starts_all_again(launch, launcher, count):
  run = launch(launcher, environment=PATIENT, **VALUES, steps_per_dispatch=count)
  one_is_killed(run)
  trains(run)
