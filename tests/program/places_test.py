"""Runs in buckets and on mounts: servers of object stores on the loopback, real processes, SIGKILL.

What is here starts servers: it needs the packages of the extra `emulators`.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath

from cmjax.base import lease, lock, place, stores
from cmjax.program import run_list, sample, stored_runs
from cmjax.run import checkpoint, writer
from helpers import object_stores, tiny

ROOT = pathlib.Path(__file__).parents[2]
PLACES = ("gs", "s3", "mount")
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def at(where, tmp_path):
  """A workdir there, the variables that programs need, and a store's wire."""
  if where == "mount":
    yield str(tmp_path / "mount" / "run"), None
    return
  with object_stores.served(where) as server:
    yield f"{server.url}/runs/run", server


def start(where, workdir, kills, steps, processes=1, seed=0):
  command = [
    *(sys.executable, str(ROOT / "tests" / "helpers" / "killed.py"), workdir),
    *map(str, (kills, steps, seed, processes)),
  ]
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
  }
  return subprocess.Popen(
    [*command, *["no_folder_renames"] * (where == "mount")],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finished(process, seconds):
  said, _ = process.communicate(timeout=seconds)
  assert process.returncode == 0, said[-4000:]
  return said


def losses(workdir):
  steps, values = writer.read_metrics(workdir)["loss"]
  return steps.tolist(), values.tolist()


def snapshots(workdir):
  """The steps of those that are whole."""
  names = stores.files(f"{workdir}/snapshots")
  return {int(name.split("/")[0]) for name in names if name.endswith(checkpoint.DIGESTS)}


def assert_is_the_same_run(workdir, expected):
  tiny.assert_same(tiny.state(workdir), tiny.state(expected))
  assert losses(workdir) == losses(expected)
  assert snapshots(workdir) == snapshots(expected) != set()
  assert not [name for name in stores.files(workdir) if ".probe-" in name or "partial" in name]


@pytest.mark.devices
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
  ("kills", "steps", "processes"),
  [
    (3, 60, 1),
    pytest.param(2, 32, 2, marks=pytest.mark.soak),
    pytest.param(20, 400, 1, marks=pytest.mark.soak),
    pytest.param(20, 400, 2, marks=pytest.mark.soak),
  ],
)
def test_a_run_killed_at_random_ends_with_the_bits_of_one_that_was_not(
  tmp_path, where, kills, steps, processes
):
  whole = str(tmp_path / "whole")
  finished(start("disk", whole, 0, steps, processes), 600)
  with at(where, tmp_path) as (workdir, _):
    said = finished(start(where, workdir, kills, steps, processes), 60 * (kills + 4))
    assert f"killed {kills}" in said
    assert [step for step in re.findall(r"Starting at step (\d+) of", said) if step != "0"], said
    assert_is_the_same_run(workdir, whole)
    by_name = checkpoint.Checkpoints(workdir, read_only=True)
    by_name.close()
    folder = by_name.directory / str(by_name.steps()[0])
    assert (folder / "commit_success.txt").exists() and (folder / "unfinished").exists()


@pytest.mark.soak
@pytest.mark.parametrize("where", ["gs", "s3"])
def test_a_lost_connection_is_waited_for_said_once_and_costs_nothing(tmp_path, where):
  seconds = 60  # s3fs tries again in silence for the first 20
  whole = str(tmp_path / "whole")
  finished(start("disk", whole, 0, 24), 600)
  with at(where, tmp_path) as (workdir, server):
    process = start(where, workdir, 0, 24)
    deadline = time.monotonic() + 300
    while "checkpoints" not in {name.split("/")[0] for name in stores.files(workdir)}:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
    server.wire.cut()
    time.sleep(seconds)
    assert process.poll() is None, process.communicate()[0][-4000:]
    server.wire.mend()
    said = finished(process, 300)
    assert_is_the_same_run(workdir, whole)
  assert said.count("The object store does not answer") == 1, said
  assert said.count("The object store answers again") == 1


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs, of a trace
@pytest.mark.parametrize("where", ["gs", "s3"])
def test_everything_that_modes_write_and_read_is_in_the_bucket(tmp_path, where, caplog):
  """One run with all of it, in this process; the lock is a lease, and what breaks is set aside."""
  with at(where, tmp_path) as (workdir, server):
    assert place.capabilities(workdir) == (False, False, False, True)
    config = tiny.config("snapshots", total_steps=8)
    scores = tiny.train(config, workdir, profile_steps=(2, 4))
    local = tiny.train(config, tmp_path / "whole")
    times = ("steps_per_sec", "images_per_sec")
    assert {k: v for k, v in scores.items() if k not in times} == {
      k: v for k, v in local.items() if k not in times
    }
    there = stores.files(workdir)
    for name in ("config.json", "parameters.txt", "scores.json", "report.html", "evaluations.json"):
      assert there[name] > 0
    folders = {name.split("/")[0] for name in there if "/" in name}
    assert folders >= {"checkpoints", "snapshots", "metrics", "tensorboard", "cards", "lock.lease"}
    assert folders >= {"references", "profile"}
    assert any(name.endswith(".xplane.pb") for name in there)
    exp = tiny.experiment_of("snapshots", total_steps=8)
    how = dict(name="one_step", num_samples=4, seed=0, ema="main")
    (picture, arrays) = sample.sample(exp, workdir, **how)
    with arrays.open("rb") as file:
      assert np.load(file)["samples"].shape == (4, 2) and picture.exists()
    assert "fd" in sample.evaluate(exp, workdir)

    assert there["samples/real.png"] > 0  # training points, for the page
    found = run_list.find(server.url)
    assert [(run.state, run.step) for run in found.runs.values()] == [("finished", 8)]
    assert {score.name for run in found.runs.values() for score in run.scores} == {"fd"}
    assert run_list.write(found).read_text().startswith("<!doctype html>")
    with lock.hold(workdir):
      assert lock.is_held(workdir)
    assert not lock.is_held(workdir)

    teacher = tiny.config(total_steps=4, evals={})
    teacher.init_from = dict(workdir=workdir, ema="main")
    tiny.train(teacher, tmp_path / "student")

    newest = f"{workdir}/checkpoints/8"
    damaged = next(name for name in stores.files(newest) if name.startswith("state/d/"))
    (epath.Path(newest) / damaged).write_bytes(b"other")
    opened = checkpoint.Checkpoints(workdir)
    run = stored_runs.read_experiment(workdir)
    assert opened.restore(lambda meta: _layout(run, meta)).step == 4
    opened.close()
    assert opened.steps() == [4]
    assert any(name.startswith("broken/8.") for name in stores.files(workdir))
    assert "The checkpoint of step 8" in caplog.text


def _layout(exp, meta):
  import jax

  from cmjax import experiment
  from cmjax.base import sharding

  shapes = jax.eval_shape(experiment.state_init(exp), jax.random.key(0))
  return stored_runs.sharded(shapes, sharding.make_mesh())


HOLDER = """
import sys, time
from cmjax.base import lock, paths
with lock.hold(paths.place(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.mark.parametrize("where", ["gs", "s3"])
def test_the_lock_is_refused_by_a_live_owner_and_taken_over_from_a_dead_one(
  tmp_path, where, monkeypatch, caplog
):
  with at(where, tmp_path) as (workdir, _):
    with pytest.raises(
      ValueError, match="Cannot write to the workdir .*: there is no bucket 'other'"
    ):
      with lock.hold(f"{where}://other/run"):
        pass
    assert not stores.has_bucket(f"{where}://other/run")  # nor was it made
    command = [sys.executable, "-c", HOLDER, workdir]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with contextlib.ExitStack() as ends:
      process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
      ends.enter_context(process)
      ends.callback(process.kill)  # first, so that a test that fails need not wait for its end
      assert process.stdout is not None and process.stdout.readline() == "held\n"
      with pytest.raises(ValueError, match=f"Another run trains in .*: process {process.pid} on"):
        with lock.hold(epath.Path(workdir)):
          pass
    with monkeypatch.context() as patch:  # as from another machine, which waits
      patch.setattr(lease, "_process", dict)
      patch.setattr(lease, "DEAD", 8.0)
      began = time.monotonic()
      with lock.hold(epath.Path(workdir)) as check:
        assert time.monotonic() - began > 3
        check()
    assert "it is taken over" in caplog.text
    assert threading.active_count() < 50
