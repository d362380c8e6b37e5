"""The commands in README and docs: found, read by the program's own parsers, and run."""

import argparse
import contextlib
import importlib
import re
import shlex
import sys
from typing import NamedTuple
from unittest import mock

from absl import flags

from cmjax import pages as config_pages
from cmjax.commands import cli, start
from helpers import sentences

ROOT = sentences.ROOT
FENCE = re.compile(r"(?ms)^([ ]*)```(\w*)\n(.*?)^[ ]*```[ ]*$")
MARK = re.compile(r"<!-- not run: (.+?) -->\n\Z", re.DOTALL)
# Programs that are not ours: nothing but their names is known here.
OTHERS = ("git", "curl", "unzip", "kill", "tensorboard", "cd", "gcloud")
# Of runs that a command reads its config from, where the folder does not have a page's name.
RUNS = {
  "toy2d": "toy2d_sct",
  "digits": "digits_scd",
  "cifar10": "cifar10_sct",
  "cifar10_edm": "cifar10_edm_teacher",
  "mine": "toy2d_sct",
  "teacher": "own_images_teacher",
  "student": "own_images_scd",
}
# What an earlier command of a page writes, and what stands for it where a command is only read.
WRITTEN = {
  "--config=runs/photos/teacher.py": "--config=own_images_teacher",
  "--config=runs/photos/student.py": "--config=own_images_scd",
  "cifar10.safetensors": "digits",
}
MODULES = {"data.prepare": "commands.prepare", "metrics.detectors": "commands.detectors"}
MODULES |= {name: f"commands.{name}" for name in ("convert", "ema")}


class Block(NamedTuple):
  """Commands that stand together.

  Attributes:
    page: whose they are.
    lines: one for each command.
    why_not: why they are not run; empty if they are.
  """

  page: str
  lines: tuple[str, ...]
  why_not: str


class Read(BaseException):
  """The arguments of a program were read, and are right."""


def fences(text):
  """[(language, code, what stands before)] of a page; without a language it is bash."""
  return [(m[2] or "bash", m[3], text[: m.start()]) for m in FENCE.finditer(text)]


def commands(code):
  """The lines of a block, joined where they are continued; comments and empty lines are none."""
  lines = re.sub(r"\s*\\\n\s*", " ", code).splitlines()
  return tuple(line.strip() for line in lines if shlex.split(line, comments=True))


def blocks():
  """All commands of all pages."""
  found = []
  for page, path in sentences.pages().items():
    for language, code, before in fences(path.read_text()):
      if language == "bash":
        mark = MARK.search(before)
        found.append(Block(page, commands(code), mark[1] if mark else ""))
  return found


def words(line):
  """The words of a command, without the variables that are set for it."""
  found = shlex.split(line, comments=True)
  while found and re.match(r"[A-Z_]+=", found[0]):
    del found[0]
  return found


def check(line):
  """Raises ValueError, in one line, for a command that its program would not understand."""
  for part in re.split(r" && ", line):
    _check(words(part))


def _check(command):
  program, *arguments = command
  if program.endswith("python") and arguments[:1] == ["-m"]:
    _check_module(arguments[1], arguments[2:])
  elif program.endswith("python"):
    _check_script(*arguments)
  elif program == "cmjax":
    check_verb(*arguments)
  elif program in ("pip", "make", "bash"):
    {"pip": _check_pip, "make": _check_make, "bash": _check_files}[program](*arguments)
  elif program == "pytest":
    _check_module("pytest", arguments)
  elif program.startswith("launch/"):
    _check_files(program, *(a for a in arguments if a.endswith(".py")))
  elif program not in OTHERS:
    raise ValueError(f"{program} is not known: add it to OTHERS, or mend it.")


def check_verb(verb, *arguments):
  """As `check`, of the program cmjax."""
  if verb in cli.EXPERIMENTS:
    # As a folder: whether the packages of buckets are there is another question.
    arguments = [re.sub("(gs|s3)://", "", argument) for argument in arguments]
    arguments = [WRITTEN.get(argument, argument) for argument in arguments]
    arguments = _with_config(verb, arguments)
  elif verb not in cli.TOOLS and verb != "--version":
    raise ValueError(f"cmjax has no verb {verb!r}.")
  if verb != "--version":
    _parsed(cli.main, (verb, *arguments))


def _with_config(verb, arguments):
  """The arguments with the config that the run would have."""
  module = importlib.import_module(f"cmjax.commands.{verb}")
  given = any(argument.startswith("--config=") for argument in arguments)
  folder = re.search(r"--workdir=(\S+)", " ".join(arguments))
  if given or not folder or module.CONFIG_FROM.name == "FLAG":
    return arguments
  name = folder[1].rstrip("/").rpartition("/")[2]
  name = RUNS.get(name, name)
  if name not in config_pages.names():
    raise ValueError(f"Of which page is the run {folder[1]}? Add it to RUNS.")
  return [f"--config={name}", *arguments]


def _parsed(main, arguments):
  """Has a program read its arguments, and stops it there."""
  read = argparse.ArgumentParser.parse_args

  def parse_args(self, *args, **kwargs):
    read(self, *args, **kwargs)
    raise Read

  def begin(argv, verb):
    start.parse(argv, verb, flags.FlagValues())
    raise Read

  try:
    with contextlib.ExitStack() as stack:
      stack.enter_context(mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args))
      stack.enter_context(mock.patch.object(start, "start", begin))
      # What a command allows is for its own process.
      stack.enter_context(mock.patch.object(start.common, "permit"))
      stack.enter_context(mock.patch.object(start.configs, "allow_own_parts"))
      main(list(arguments))
  except Read:
    return
  except SystemExit as stop:
    raise ValueError(f"is refused, with exit code {stop.code}") from stop
  raise ValueError("did not read its arguments.")


def _check_module(module, arguments):
  if module == "pytest":
    _check_files(*(a for a in arguments if "/" in a))
  elif module.startswith("helpers."):
    _check_files(f"tests/{module.replace('.', '/')}.py")
  elif module == "cmjax":
    check_verb(*arguments)
  elif module == "cmjax.main":
    mode = [a.partition("=")[2] for a in arguments if a.startswith("--mode=")] or ["train"]
    check_verb(mode[-1], *(a for a in arguments if not a.startswith("--mode=")))
  elif module.startswith("cmjax."):
    name = module.removeprefix("cmjax.")
    _parsed(importlib.import_module(f"cmjax.{MODULES.get(name, name)}").main, arguments)
  else:
    raise ValueError(f"python -m {module} is not known.")


def _check_script(script, *arguments):
  _check_files(script)
  sources = "\n".join(path.read_text() for path in (ROOT / script).parent.glob("*.py"))
  for flag in (a.partition("=")[0] for a in arguments if a.startswith("--")):
    if f'"{flag}"' not in sources:
      raise ValueError(f"{script} has no {flag}.")


def _check_files(*paths):
  for path in paths:
    if not (ROOT / path).exists():
      raise ValueError(f"there is no {path}.")


def _check_make(*targets):
  made = re.findall(r"(?m)^([\w-]+):(?!=)", (ROOT / "Makefile").read_text())
  for target in targets:
    if target not in made:
      raise ValueError(f"make has no {target}.")


def _check_pip(*arguments):
  extras = re.findall(r'(?m)^  "(\w+)": \[', (ROOT / "setup.py").read_text())
  for asked in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
    if missing := set(asked.split(",")) - set(extras):
      raise ValueError(f"cmjax has no extra {', '.join(missing)}.")


# --- how commands are run in little time ---

SHORTER = {
  "--config=toy2d_sct ": "--config=toy2d_sct:smoke ",
  "--config=digits_teacher ": "--config=digits_teacher:smoke ",
  "--config=digits_scd ": "--config=digits_scd:smoke ",
  "--config.total_steps=1e4": "--config.total_steps=10",
  "make quickstart": "python -m cmjax.commands.quickstart --variant=smoke",
  "PYTHONPATH=tests python -m helpers.sentences": "python -m helpers.sentences",
}


def shortened(line):
  """A command as it is run by the tests: with this Python, and a few steps."""
  line = re.sub(r"\s+#.*", "", line) + " "
  for long, short in SHORTER.items():
    line = line.replace(long, short)
  line = re.sub(r"^cmjax ", "python -m cmjax ", line)
  return re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", line).strip()
