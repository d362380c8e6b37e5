"""What a training says when it ends: every command in it can be typed."""

import json
import shlex

import pytest
from absl import flags

from cmjax import pages
from cmjax.commands import cli, start
from cmjax.program import ending
from helpers import tiny

TEACHERS = [name for name in pages.names() if name.endswith("_teacher")]
FOUND = ("cifar10_teacher", "cifar10_cond_teacher", "digits_teacher", "digits_cond_teacher",
         "imagenet64_teacher")  # fmt: skip


def parsed(command):
  """The config of a command, as the program reads it."""
  program, verb, *arguments = shlex.split(command)
  assert program == "cmjax"
  return start.parse([f"cmjax {verb}", *arguments], verb, flags.FlagValues())


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_names_the_command_that_distils_it(name):
  record = json.loads(json.dumps(pages.load(name).to_dict()))  # lists for tuples, as it is stored
  command = ending.distil(record, "my runs/a teacher")
  assert (command is not None) or name not in FOUND
  if command is None:
    return
  command = parsed(command)
  config = command.config
  assert config.teacher.workdir == config.init_from.workdir == "my runs/a teacher"
  data = name.removesuffix("_teacher").removesuffix("_cond")
  assert command.values.workdir == f"my runs/{data}_scd"
  assert config.loss.name == "scd"
  for key in ("channels", "num_classes", "channel_mult", "name"):
    if key in record["net"]:
      stored = record["net"][key]
      assert config.net[key] == (tuple(stored) if isinstance(stored, list) else stored), key


def test_settings_of_the_teacher_are_in_the_command():
  record = pages.load("digits_teacher").to_dict()
  record["net"]["channels"], record["sigma_data"] = 48, 0.7
  config = parsed(ending.distil(record, "runs/t")).config
  assert (config.net.channels, config.sigma_data) == (48, 0.7)


def test_of_data_that_no_page_has_there_is_no_command():
  record = pages.load("digits_teacher").to_dict()
  record["data"] = {"name": "mine"}
  assert ending.distil(record, "runs/t") is None


def test_the_end_has_scores_places_and_commands_that_can_be_typed(tmp_path):
  workdir = tmp_path / "a run"
  scores = {"swd/floor": 0.01, "swd/one_step/main": 0.25, "evaluation_sec/swd": 1.0}
  text = ending.said(tiny.experiment_of(), workdir, scores)
  lines = text.splitlines()
  assert lines[0] == "Done: step 12 of 12."
  assert lines[2].split() == [
    *("score", "sampler", "average", "NFE", "value"),
    *("held", "out"),
  ]
  assert lines[3].split() == ["swd", "one_step", "main", "1", "0.25", "0.01"]
  assert f"Report:      {workdir}/report.html" in lines
  assert f"Checkpoint:  {workdir}/checkpoints/12" in lines
  commands = [line.strip() for line in lines if line.strip().startswith("cmjax")]
  assert [command.split()[1] for command in commands] == ["sample", "evaluate", "runs"]
  for command in commands:
    _, verb, *arguments = shlex.split(command)
    assert verb in cli.EXPERIMENTS | cli.TOOLS
    assert arguments == ([f"--workdir={workdir}"] if verb != "runs" else [str(tmp_path)])


def test_a_teacher_ends_with_how_to_distil_it(tmp_path):
  exp = tiny.experiment_of()
  teacher = pages.load("digits_teacher").to_dict()
  made = exp._replace(method=exp.method._replace(name="diffusion"), record=teacher)
  lines = ending.said(made, tmp_path / "t", {}).splitlines()
  after = lines[lines.index("Next:") :]
  assert after[1].strip().startswith("# distil") and "cmjax train --config=digits_scd" in after[2]
