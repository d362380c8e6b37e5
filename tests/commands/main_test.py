"""The program as its user meets it: its modes, and every way to mistype a command."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from cmjax import verify
from cmjax.base import lock
from cmjax.commands import start
from cmjax.program import train
from helpers import in_process, tiny

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=tests/helpers/tiny.py"
QUICK = "--config=configs/digits_teacher.py"  # it need not import jax
pytestmark = pytest.mark.usefixtures("shared_programs")


def run(*args):
  """The program in a process of its own: exit code, stdout, stderr."""
  command = [sys.executable, "-m", "cmjax.main", *args]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (
      [QUICK, "--config.optim.lrr=1"],
      "--config.optim.lrr: config.optim has no 'lrr'. It has: b1, ",
    ),
    (
      [QUICK, "--config.optim.schedule.warmup=1"],
      "config.optim.schedule has no 'warmup'. It has:",
    ),
    ([QUICK, "--config.seed.x=1"], "--config.seed.x: config.seed is a value, it has no keys."),
    (
      [QUICK, "--config.optim.lr=fast"],
      "--config.optim.lr=fast: could not convert string to float",
    ),
    (
      ["--config=tests/none.py", "--config.optim.lr=1"],
      "'tests/none.py'",
    ),
    (["--workdir=x"], "Flag --config must have a value other than None"),
    ([QUICK, "--mode=fly"], "--mode=fly: value should be one of <train|sample|evaluate|reference|"),
    ([QUICK, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
    ([QUICK, "workdir=x"], "Unknown arguments ['workdir=x']: options begin with --."),
  ],
)
def test_a_mistyped_command_says_what_is_right(args, message, told, monkeypatch):
  monkeypatch.chdir(ROOT)
  code, out, err = told(*args)
  assert code == 1
  assert message in err + out
  assert "Traceback" not in err


def test_so_does_a_process_of_its_own():
  code, out, err = run(QUICK, "--config.optm.lr=1")
  assert code == 1
  assert "--config.optm.lr: config has no 'optm'. It has: batch_size, " in err + out
  assert "Traceback" not in err


@pytest.fixture(name="told")
def _told(capsys):
  """What the program says in this process: exit code, stdout, stderr."""
  return lambda *args: in_process.answer(capsys, lambda: in_process.mode(*args))


@pytest.fixture(name="program")
def _program(told):
  """The program in this process with the page of these tests."""
  return functools.partial(told, CONFIG)


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory):
  """Of a run that another process made, with two values of the config set."""
  workdir = tmp_path_factory.mktemp("run")
  code, _, err = run(
    *(CONFIG, f"--workdir={workdir}", "--config.optim.lr=3e-4", "--config.optim.clip_norm=0.5"),
    *("--config.total_steps=6", "--config.samplers.two_steps.mid_times=(0.9,)"),
  )
  assert code == 0, err
  return workdir


def test_values_of_the_config_are_set_by_flags(workdir):
  config = json.loads((workdir / "config.json").read_text())
  assert (config["optim"]["lr"], config["total_steps"]) == (3e-4, 6)
  assert config["optim"]["clip_norm"] == 0.5  # None in the file
  assert config["samplers"]["two_steps"]["mid_times"] == [0.9]
  assert (workdir / "report.html").exists()


def test_the_same_command_with_another_value_says_which(workdir, program):
  code, _, err = program(f"--workdir={workdir}")
  assert code == 1
  assert err.startswith("cmjax: The config does not fit the checkpoints in the workdir:")
  assert "optim.lr: 0.0003 in the checkpoint, 0.01 now" in err


def test_training_is_told_whether_the_config_may_change_and_what_to_trace(program, monkeypatch):
  told = []
  monkeypatch.setattr(train, "train", lambda *args, **options: told.append(options) or {})
  for args in ((), ("--allow_config_change", "--profile_steps=10:15")):
    assert program("--workdir=x", *args)[0] == 0
  assert told == [
    {"allow_config_change": False, "profile_steps": None, "tries": None},
    {"allow_config_change": True, "profile_steps": (10, 15), "tries": None},
  ]
  code, _, err = program("--workdir=x", "--profile_steps=15")
  assert code == 1 and err.startswith("cmjax: --profile_steps=15 must be two steps")


def test_samples_are_drawn_from_a_run_the_same_for_the_same_seed(workdir, program):
  drawn = []
  for seed in (1, 1, 2):
    args = ("--mode=sample", "--num_samples=5", "--sampler=one_step", f"--seed={seed}")
    code, out, _ = program(f"--workdir={workdir}", *args)
    picture, arrays = map(pathlib.Path, out.split())
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    drawn.append(np.load(arrays)["samples"])
    assert arrays.name == f"one_step_main_step6_seed{seed}.npz"
  assert drawn[0].shape == (5, 2) and np.isfinite(drawn[0]).all()
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert not np.array_equal(drawn[0], drawn[2])


def test_a_run_alone_goes_on_and_is_sampled_as_with_its_page(workdir, program, capsys):
  for verb in ("train", "sample"):
    argv = [f"cmjax {verb}", f"--workdir={workdir}"]
    if verb == "sample":
      argv += ["--num_samples=5", "--sampler=two_steps", "--seed=3"]
    assert not start.run(start.parse(argv, verb, flags.FlagValues()))
  out = capsys.readouterr().out
  assert out.startswith("Done: step 6 of 6.\n") and f"cmjax sample --workdir={workdir}\n" in out
  arrays = pathlib.Path(out.split()[-1])
  alone = np.load(arrays)["samples"]
  args = ("--mode=sample", *argv[1:], "--config.samplers.two_steps.mid_times=(0.9,)")
  assert program(*args)[1].split()[-1] == str(arrays)
  np.testing.assert_array_equal(np.load(arrays)["samples"], alone)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (("--num_samples=0",), "--num_samples=0 must be at least 1"),
    (("--num_samples=4", "--sampler=heun"), "'heun'. Choose from: one_step, two_steps"),
  ],
)
def test_samples_that_cannot_be_drawn_say_why(workdir, program, args, message):
  code, _, err = program(f"--workdir={workdir}", "--mode=sample", *args)
  assert code == 1 and message in err


def test_evaluating_a_run_prints_its_scores_and_rewrites_the_report(workdir, program):
  trained = json.loads((workdir / "scores.json").read_text())
  (workdir / "report.html").unlink()
  with lock.hold(workdir, "train"):  # it runs beside a training
    code, out, _ = program(f"--workdir={workdir}", "--mode=evaluate")
  assert code == 0 and out.startswith("step 6\n")
  assert f"swd/one_step/main: {trained['swd/one_step/main']:.5g}" in out
  assert json.loads((workdir / "scores.json").read_text()).keys() == trained.keys()
  assert (workdir / "report.html").exists()


def test_a_second_evaluation_at_once_is_refused_in_one_line_and_changes_nothing(workdir, program):
  before = (workdir / "scores.json").stat()
  with lock.hold(workdir, "evaluate"):
    code, out, err = program(f"--workdir={workdir}", "--mode=evaluate")
  assert code == 1 and not out and err.count("\n") == 1
  assert err.startswith(f"cmjax: Another process scores {workdir}: process {os.getpid()} on ")
  assert (workdir / "scores.json").stat() == before


def test_measuring_the_data_needs_no_workdir(program):
  code, out, _ = program("--mode=measure")
  found = json.loads(out.splitlines()[0])
  assert code == 0 and found["num"] == 512 and found["shape"] == [2]
  assert 0.45 < found["std"] < 0.55  # of the distribution: 0.5
  assert "config.sigma_data is 0.5; the std of the data is 0." in out


def test_a_reference_needs_a_file_and_an_evaluator_that_says_of_what(program, tmp_path):
  code, _, err = program("--mode=reference")
  assert code == 1 and "--mode=reference needs --to, the file to write" in err
  code, _, err = program("--mode=reference", f"--to={tmp_path / 'a.npz'}")
  assert code == 1 and "A reference needs a 'frechet' evaluator in config.evals" in err


def test_images_are_scored_by_an_evaluator_of_images(program, tmp_path):
  np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
  args = ("--mode=evaluate", f"--workdir={tmp_path}", f"--images={tmp_path / 'a.npz'}")
  code, _, err = program(*args)
  assert code == 1 and "scored by the 'frechet' evaluators of config.evals: add one" in err


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_the_other_modes_do(program, mode):
  code, _, err = program(f"--mode={mode}")
  model = ", or --model, a model in one file" if mode == "sample" else ""
  assert (
    code == 1 and err == f"cmjax: --mode={mode} needs --workdir, the folder of the run{model}.\n"
  )


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_a_workdir_without_a_run_is_one_message(program, tmp_path, mode):
  code, _, err = program(f"--mode={mode}", f"--workdir={tmp_path / 'none'}")
  assert code == 1 and "train that run first" in err and "Traceback" not in err
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_verifying_needs_no_workdir_and_its_verdict_is_the_exit_code(
  program, monkeypatch, passed, code
):
  seen = []
  monkeypatch.setattr(verify, "verify", lambda *args: seen.append(args) or ("the table", passed))
  assert program("--mode=verify")[:2] == (code, "the table\n")
  (given, workdir), *others = seen
  assert given.run.batch_size == 16 and workdir is None and not others


def test_verifying_the_library_alone_needs_no_config(told):
  # A name that does not exist, so that nothing is computed: only the flags are tried.
  code, _, err = told("--mode=verify", "--config.seed=1")
  assert code == 1 and "config" in err
  code, _, err = told()
  assert code == 1 and "--config" in err


def test_a_search_without_features_or_samples_says_so(workdir, program):
  args = (f"--workdir={workdir}", "--mode=search")
  code, _, err = program(*args)
  assert code == 1 and "needs a 'frechet' evaluator in config.evals" in err
  code, _, err = program(*args, "--num_probes=4")
  assert code == 1 and "--num_probes=4 must be at least 5" in err
  code, _, err = program(*args, "--sampler=one_step")
  assert code == 1 and "needs a 'frechet'" in err


@pytest.mark.slow
def test_a_process_joins_before_it_reads_the_config_of_a_run(tmp_path):
  """As the program itself: to read a checkpoint is a use of JAX, after which none can join."""
  tiny.train(tiny.config(total_steps=4), tmp_path / "run")
  command = (sys.executable, "-m", "cmjax", "sample", f"--workdir={tmp_path / 'run'}")
  path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
  done = subprocess.run(
    [*command, "--num_samples=4"], env=os.environ | {"PYTHONPATH": path}, capture_output=True,
    text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert len(done.stdout.splitlines()) == 4  # a picture and an .npz of each sampler


@pytest.mark.slow
def test_a_save_that_fails_is_one_line_and_with_room_the_same_command_goes_on(tmp_path):
  """No file may pass 1 MB, where the weights have 2: as a full disk, but for the words."""
  code = (
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
    "from cmjax.commands import start\n"
    "start.start(['x', *sys.argv[2:]], 'train')\n"
  )
  command = ["--config=toy2d_sct:smoke", "--config.net.width=512", f"--workdir={tmp_path}"]

  def train(most_bytes):
    return subprocess.run(
      [sys.executable, "-c", code, str(most_bytes), *command],
      env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
      capture_output=True, text=True, timeout=300,
    )  # fmt: skip

  ran = train(10**6)
  last = ran.stderr.splitlines()[-1]
  assert ran.returncode == 1 and "Traceback" not in ran.stderr
  assert last.startswith("cmjax: The checkpoint of step 2 could not be written to "), last
  assert len(ran.stderr.splitlines()) < 20
  assert train(10**9).returncode == 0
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4"}
