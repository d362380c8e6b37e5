"""The program `cmjax`: its verbs, what each tells of itself, and where its config comes from."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

import cmjax
from cmjax import verify
from cmjax.base import sharding
from cmjax.commands import cli, common, configs, start
from cmjax.program import plan, preflight, sample, train
from helpers import in_process, tiny

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=tests/helpers/tiny.py"
VERBS = [*cli.EXPERIMENTS, *cli.TOOLS]

# Which modules a process has after it wrote the help of all, and after a misspelt flag.
IMPORTS = """
import contextlib, io, sys
from cmjax.commands import cli

def run(*arguments):
  out = io.StringIO()
  with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
    cli.main(arguments)
  return out.getvalue()

assert "cmjax VERB" in run("--help")
print({"absl", "numpy", "ml_collections", "jax"} & set(sys.modules))
for verb in (*cli.EXPERIMENTS, *cli.TOOLS):
  assert f"usage: cmjax {verb}" in run(verb, "--help"), verb
print({"absl", "ml_collections", "jax"} & set(sys.modules))
run("sample", "--config=configs/digits_teacher.py", "--config.optm.lr=1")
print({"jax"} & set(sys.modules), "ml_collections" in sys.modules)
"""


@pytest.fixture(name="told")
def _told(capsys):
  """What a verb says in this process: exit code, stdout, stderr."""
  return lambda *args: in_process.answer(capsys, lambda: in_process.verb(*args))


def test_help_and_a_misspelt_flag_need_not_wait_for_jax():
  command = [sys.executable, "-c", IMPORTS]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.stdout == "set()\nset()\nset() True\n", done.stderr
  assert done.stderr.startswith("cmjax: --config.optm.lr: config has no 'optm'. It has: batch_")


def test_python_m_cmjax_is_the_program():
  arguments = ["show", "--config", "configs/digits_teacher.py", "--config.optim.lr=0.125"]
  command = [sys.executable, "-m", "cmjax", *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0 and "0.125" in done.stdout, done.stderr


@pytest.mark.parametrize("verb", cli.EXPERIMENTS)
def test_the_help_of_a_verb_has_its_own_flags(verb, told):
  code, out, _ = told(verb, "--help")
  values = flags.FlagValues()
  needs = importlib.import_module(f"cmjax.commands.{verb}").NEEDS
  needs = [need if isinstance(need, common.Flag) else need[0] for need in needs]
  start.parse([f"cmjax {verb}", CONFIG, *(f"--{flag.name}=x" for flag in needs)], verb, values)
  assert code == 0
  assert set(re.findall(r"^  --(\w+)", out, re.MULTILINE)) == set(values)
  assert out.count(f"cmjax {verb}") >= 2 and "\n  cmjax " in out  # usage and an example


def test_help_has_every_verb_and_an_unknown_one_is_told_the_nearest(told):
  _, out, _ = told("--help")
  assert re.findall(r"^  (\w+)  ", out, re.MULTILINE) == VERBS
  assert set(start.MODES) == set(cli.EXPERIMENTS)
  assert told("trian") == (1, "", "cmjax: There is no verb 'trian'. Did you mean train?\n")
  code, _, err = told("--config=a")
  assert code == 1 and err.endswith(f"Choose from: {', '.join(VERBS)}.\n")
  assert cli.main([]) == 1


def test_the_version_stands_in_one_place(told):
  assert told("--version") == (0, f"cmjax {cmjax.__version__}\n", "")
  assert f'__version__ = "{cmjax.__version__}"' in pathlib.Path(cmjax.__file__).read_text()


@pytest.mark.parametrize("verb", cli.TOOLS)
def test_a_tool_says_its_usage_under_its_name(verb, told):
  code, _, err = told(verb)
  assert code == 2 and f"usage: cmjax {verb} " in err


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (("sample",), "--workdir must name the folder of a run. Or name a model: cmjax sample digits."),
    (("sample", CONFIG), "cmjax sample needs --workdir, the folder of the run, or --m"),
    (("reference", CONFIG), "cmjax reference needs --to, the file to write: statistics.npz."),
    (("measure", CONFIG, "x"), "Unknown arguments ['x']: options begin with --."),
    (("plan", "--workdir=x"), "Flag --config must have a value other than None: a page, or the"),
    (("train",), "Flag --config must have a value other than None, or --workdir must name the"),
    (("train", "--config"), "Missing value for flag --config"),
    (("verify", "--workdir=x"), "--workdir must name the folder of a run: x has no config.json."),
    (
      ("sample", CONFIG, "--wrkdir=x"),
      "Unknown command line flag 'wrkdir'. Did you mean: workdir ? (cmjax sample --help has the",
    ),
    (("sample", CONFIG, "--topology=x"), "Unknown command line flag 'topology'"),
    (("sample", CONFIG, "--config.sed=1"), "--config.sed: config has no 'sed'. It has: batch_"),
  ],
)
def test_a_mistyped_command_is_one_line(args, message, told):
  code, out, err = told(*args)
  assert (code, out, err.count("\n")) == (1, "", 1)
  assert err.startswith("cmjax: ") and message in err


@pytest.fixture(name="called")
def _called(monkeypatch):
  """Replaces a function of the library by one that records how it was called."""

  def called(module, name, answer=None):
    calls = []
    monkeypatch.setattr(module, name, lambda *args, **more: calls.append((args, more)) or answer)
    return calls

  return called


DRAWN = dict(num_samples=None, seeds=None, name=None, seed=0, out=None, batch_size=64)
WITH_RUN = {  # verb: what it calls, with what beside the config, and what that answers
  "train": (train, "train", dict(allow_config_change=False, profile_steps=None, tries=None), {}),
  "evaluate": (sample, "evaluate", {}, "scores"),
  "sample": (sample, "sample", DRAWN | {"ema": None}, ["path"]),
  "search": (sample, "search_times", dict(name=None, num_samples=None, num_probes=12, seed=0), "t"),
  "verify": (verify, "verify", {}, ("table", True)),
  "preflight": (preflight, "preflight", {}, ("table", True)),
}


@pytest.mark.parametrize("verb", WITH_RUN)
def test_a_workdir_alone_means_the_config_of_its_run(verb, tmp_path, told, called):
  config = tiny.config()
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  module, name, options, answer = WITH_RUN[verb]
  calls = called(module, name, answer)
  override = "--config.samplers.two_steps.mid_times=(0.9,)"  # a tuple, but a list in JSON
  code, _, err = told(verb, f"--workdir={tmp_path}", override, "--config.optim.clip_norm=0.5")
  assert code == 0, err
  (((used, workdir), more),) = calls
  config.samplers.two_steps.mid_times, config.optim.clip_norm = (0.9,), 0.5
  assert (used.record, workdir, more) == (config.to_dict(), str(tmp_path), options)


def test_a_page_goes_before_the_config_of_the_run(tmp_path, told, called):
  (tmp_path / "config.json").write_text(json.dumps(tiny.config(seed=7).to_dict()))
  calls = called(train, "train", {})
  assert told("train", CONFIG, f"--workdir={tmp_path}")[0] == 0
  stored = f"--config={tmp_path / 'config.json'}"
  override = "--config.samplers.two_steps.mid_times=(0.9,)"
  assert told("train", stored, f"--workdir={tmp_path}", override)[0] == 0
  assert [args[0].run.seed for args, _ in calls] == [0, 7]
  assert calls[1][0][0].record["samplers"]["two_steps"]["mid_times"] == (0.9,)


WITHOUT_RUN = [  # arguments, what is called, with what beside the config, answer, stdout
  (("reference", "--to=a.npz"), sample, "make_reference", ("a.npz",), "done", "done\n"),
  (("measure",), sample, "measure", (), "0.5", "0.5\n"),
  (("plan", "--topology=h100:8"), plan, "plan", ("h100:8",), "report", "table of report\n"),
  (
    ("evaluate", "--workdir=w", "--images=i"),
    *(sample, "evaluate_images", ("w", "i"), "card", "card\n"),
  ),
]


@pytest.mark.parametrize(("args", "module", "name", "options", "answer", "said"), WITHOUT_RUN)
def test_a_verb_calls_its_program_and_says_the_answer(
  args, module, name, options, answer, said, told, called, monkeypatch
):
  calls = called(module, name, answer)
  monkeypatch.setattr(plan, "table", lambda report: f"table of {report}")
  assert told(*args, CONFIG) == (0, said, "")
  ((used, *others), more), *_ = calls
  assert (used.record, tuple(others), more) == (tiny.config().to_dict(), options, {})


def test_a_plan_is_written_where_there_is_a_workdir(told, called, monkeypatch):
  called(plan, "plan", "report")
  written = called(plan, "write", "plan.json")
  monkeypatch.setattr(plan, "table", str)
  assert told("plan", CONFIG, "--workdir=w")[1] == "report\nplan.json\n"
  assert written == [(("report", "w"), {})]


def test_a_mode_is_a_verb():
  for mode in start.MODES:
    argv = [f"--mode={mode}", CONFIG, "--config.seed=3", "--workdir=w", "--to=t"]
    command = start.parse(["cmjax.main", *argv], None, flags.FlagValues())
    assert command.verb.__name__ == f"cmjax.commands.{mode}" and command.config.seed == 3
    assert command.verb.__doc__ and command.values.workdir == "w"


def test_show_prints_a_config_or_the_differences(told):
  code, out, _ = told("show", CONFIG, "--config.optim.lr=0.125")
  assert code == 0 and "0.125" in out and "checkerboard" in out
  code, out, _ = told("show", CONFIG, "--config_other=tests/helpers/tiny.py:long")
  assert code == 0 and "total_steps" in out and "checkerboard" not in out
  code, _, err = told("show", CONFIG, "--config_other=none.py")
  assert code == 1 and err.startswith("cmjax: ") and "none.py" in err


@pytest.mark.parametrize(
  ("argv", "value", "others"),
  [
    (["--config=a:b=c", "--seed=1"], "a:b=c", ["--seed=1"]),
    (["-config", "a", "--config=b"], "b", []),
    (["--config.seed=1", "--config_other=x"], None, ["--config.seed=1", "--config_other=x"]),
    (["--seed=1", "--config"], None, ["--seed=1", "--config"]),
    (["--", "--config=a"], None, ["--", "--config=a"]),
  ],
)
def test_the_config_is_taken_out_of_the_arguments(argv, value, others):
  assert configs.take(argv, "config") == (value, others)


def test_flags_may_stand_in_a_file(tmp_path):
  (tmp_path / "flags").write_text(f"{CONFIG}\n--config.seed=3\n--workdir=w\n")
  values = flags.FlagValues()
  command = start.parse(["cmjax train", f"--flagfile={tmp_path / 'flags'}"], "train", values)
  assert (command.config.seed, command.values.workdir) == (3, "w")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["show", "--config=toy2d_sct"]])
def test_whoever_stops_reading_the_answer_ends_the_program_quietly(words):
  """As `cmjax show ... | head` does, also where the answer is in a buffer until the end."""
  reader, writer = os.pipe()
  os.close(reader)
  command = [sys.executable, "-m", "cmjax", *words]
  with open(writer, "wb") as closed:
    done = subprocess.run(
      command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=300
    )
  assert (done.returncode, done.stderr) == (141, "")


TOGETHER = ("train", "sample", "evaluate", "reference", "preflight")
ALONE = [verb for verb in VERBS if verb not in TOGETHER]
ARGUMENTS = {
  "convert": ("none.pkl", "--to=none"),
  "start": ("none", "--out=none"),
  "prepare": ("none", "--out=none"),
  "ema": ("--workdir=none", "--sigma_rel=0.05"),
  "detectors": ("none.pth", "--to=none.npz"),
  "runs": ("none",),
}


def is_together(verb):
  """Whether a verb joins the other processes of its job, by what it takes."""
  return "coordinator" in {f.name for f in getattr(module_of(verb), "FLAGS", ())}


def module_of(verb):
  return importlib.import_module(f"cmjax.commands.{verb}")


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
@pytest.mark.parametrize("verb", VERBS)
def test_of_a_job_of_several_one_does_what_is_not_for_several(
  told, monkeypatch, tmp_path, verb, variable
):
  """Every verb of the table either joins the processes, or is done by the first of them."""
  monkeypatch.chdir(tmp_path)
  assert is_together(verb) == (verb not in ALONE)
  if verb in cli.EXPERIMENTS:
    monkeypatch.setattr(module_of(verb), "run", lambda values, config: 7)
    work = lambda: start.run(start.Command(module_of(verb), verb, flags.FlagValues(), None))
  else:
    work = lambda: in_process.verb(verb, *ARGUMENTS[verb])
  monkeypatch.setenv(variable, "0")
  done = work()
  assert done == (7 if verb in cli.EXPERIMENTS else 1)  # there are no such files
  monkeypatch.setenv(variable, "3")
  assert work() == (0 if verb in ALONE else done)
  assert not list(tmp_path.iterdir())


def test_those_with_nothing_to_do_say_so(told, monkeypatch):
  monkeypatch.setenv("SLURM_PROCID", "3")
  code, out, error = told("ema", "--workdir=none", "--sigma_rel=0.05")
  assert (code, out) == (0, "")
  assert error == "cmjax: process 3 of this job has nothing to do: process 0 does this alone.\n"
  assert "usage: cmjax train" in told("train", "--help")[1]  # it may well have


@pytest.mark.parametrize(
  ("count", "given", "folder"),
  [(1, (), "~/.cache/cmjax/xla"), (4, (), "runs/.compiled"), (4, ("--compile_cache=x",), "x")],
)
def test_several_processes_keep_what_they_compile_where_all_see_it(
  monkeypatch, tmp_path, count, given, folder
):
  monkeypatch.setattr(sharding, "process", lambda: (0, count))
  arguments = ("cmjax train", CONFIG, f"--workdir={tmp_path / 'runs' / 'a'}", *given)
  command = start.parse(arguments, "train", flags.FlagValues())
  found = pathlib.Path(start._compile_cache(command))
  expected = pathlib.Path(folder).expanduser()
  assert found == (tmp_path / expected if folder.startswith("runs") else expected)
