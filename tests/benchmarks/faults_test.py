"""The benchmark of faults: its judgement, and a trial of every fault that needs no root."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "robustness" / "faults.py"), run_name="faults")
WHOLE = {"step": 120, "arrays": {"w": "1", "b": "2"}}
NEED_ROOT = {"disk_full", "permission", "read_only"}
LONG = {"kill_one_of_two"}  # tests/program/processes_test.py does it
EVERY = [kind for kind in BENCHMARK["KINDS"] if kind not in NEED_ROOT | LONG]
# A kill, SIGTERM with a damaged file, an error of the run itself, and a run beside it.
FEW = ["kill_saving", "truncated", "nan_batch", "second_run"]


def went_on_from(step):
  """A process that says so."""
  return types.SimpleNamespace(started_at=lambda: step)


@pytest.mark.parametrize(
  ("start", "arrays", "asynchronous", "survived", "equal"),
  [
    (60, WHOLE["arrays"], False, True, True),
    (59, WHOLE["arrays"], False, False, False),  # more than an interval of 30 before 90
    (56, WHOLE["arrays"], True, True, True),  # since 86 there is another being written
    (55, WHOLE["arrays"], True, False, False),
    (91, WHOLE["arrays"], False, False, False),
    (60, {"w": "1", "b": "3"}, False, True, False),
    (60, {"w": "1"}, False, True, False),
  ],
)
def test_a_trial_is_judged_by_the_steps_lost_and_the_bits_in_the_end(
  tmp_path, monkeypatch, start, arrays, asynchronous, survived, equal
):
  def fault(trial, rng, n):
    (trial.workdir / "checkpoints" / "86.orbax-checkpoint-tmp").mkdir(parents=True)
    trial.digests.write_text(json.dumps({"step": 120, "arrays": arrays}))
    trial.count_lost(went_on_from(start), 90, trial.allowed(90))

  monkeypatch.setitem(BENCHMARK["KINDS"], "kill", ("kill", 1, fault))
  args = types.SimpleNamespace(workdir=tmp_path, seed=0, asynchronous=asynchronous)
  row = BENCHMARK["run_trial"](args, "kill", 0, WHOLE)
  assert (row["survived"], row["equal"], row["lost"]) == (survived, equal, max(0, 90 - start))
  lines, _ = BENCHMARK["table"]({"kill:0": row, "kill:1": row | {"lost": 3}})
  assert lines[-1] == f"| all 1 | 2 | {2 * survived} | {2 * equal} | {max(3, row['lost'])} |"


@pytest.mark.slow
@pytest.mark.parametrize(
  "kinds", [FEW, pytest.param(EVERY, marks=pytest.mark.soak)], ids=["few", "every"]
)
def test_faults_are_survived(tmp_path, kinds):
  command = [
    sys.executable,
    "benchmarks/robustness/faults.py",
    f"--workdir={tmp_path}",
    "--num_trials=1",
  ]
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [*command, "--kinds", *kinds], cwd=ROOT, capture_output=True, text=True, env=env, timeout=1800
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"| all {len(kinds)} | {len(kinds)} | {len(kinds)} | {len(kinds)} |" in done.stdout
