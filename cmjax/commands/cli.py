"""The program `cmjax`: its verbs, its help, its version."""

import difflib
import importlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import cmjax
from cmjax.commands.common import ALWAYS, Flag, answered

# Verbs with a config. The files of these have CONFIG_FROM, FLAGS, NEEDS and run(values, config).
EXPERIMENTS = {
  "train": "train a network, or go on with a run",
  "sample": "draw samples from a run, or from a model that comes along",
  "evaluate": "score a run, or images",
  "search": "search the step times of a run's samplers",
  "measure": "measure a data set, and propose settings for it",
  "verify": "check that the formulas hold on this machine",
  "plan": "say what a step will need on given chips",
  "preflight": "check the machines that a run is to have",
  "show": "print a config, or how two differ",
  "reference": "write the statistics of the training images",
}
# Verbs with arguments alone. The files of these have main(arguments), which returns the exit code.
TOOLS = {
  "start": "begin with your own pictures: prepare them, and write pages for them",
  "convert": "read a foreign checkpoint, or export a run",
  "prepare": "make a data set of images, or validate it",
  "ema": "make or score averages of other lengths, after training",
  "detectors": "convert the weights of a metric's network",
  "runs": "list the runs in a folder, and compare them on a page",
}
# The flag that a word before all flags is the value of: `cmjax sample digits`.
FIRST_WORD = {"sample": "model"}
# Of a verb whose file has another name: `start` is how verbs with a config begin.
FILES = {"start": "own_images"}
HELP = ("--help", "-h", "-?", "-help", "--helpshort")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb that comes first in argv, by default the process's; returns the exit code."""
  words = sys.argv[1:] if argv is None else list(argv)
  # What is for one process alone is answered as that by the verb.
  return answered(lambda: _run(*(words or [""])), together=True) or 0


def _run(verb: str, *words: str) -> int:
  arguments = list(words)
  if verb in EXPERIMENTS and any(word in arguments for word in HELP):
    print(_help_of(verb))  # noqa: T201
    return 0
  if verb in EXPERIMENTS:
    arguments = named(verb, arguments)
    from cmjax.commands import start  # here, so that help need not wait for absl and ml_collections

    start.start([f"cmjax {verb}", *arguments], verb)  # which ends the process
  if verb in TOOLS:
    return importlib.import_module(f"cmjax.commands.{FILES.get(verb, verb)}").main(arguments)
  if verb == "--version":
    print(f"cmjax {cmjax.__version__}")  # noqa: T201
    return 0
  if verb in ("help", *HELP):
    print(_help())  # noqa: T201
    return 0
  print(f"cmjax: {_no_verb(verb)}", file=sys.stderr)  # noqa: T201
  return 1


def named(verb: str, words: Sequence[str]) -> list[str]:
  """The arguments of a verb, with its first word, if it has one, as the flag that it stands for."""
  first, *others = words or [""]
  if verb in FIRST_WORD and first and not first.startswith("-"):
    return [f"--{FIRST_WORD[verb]}={first}", *others]
  return list(words)


def _help() -> str:
  rows = [f"  {verb:10} {summary}" for verb, summary in (EXPERIMENTS | TOOLS).items()]
  return "\n".join(
    [
      "Consistency models in JAX: training, distillation, sampling and evaluation.\n",
      "usage: cmjax VERB [--flag=value ...]\n",
      *rows,
      "\ncmjax VERB --help has the flags of a verb; cmjax --version has the version.",
    ]
  )


def _help_of(verb: str) -> str:
  module = importlib.import_module(f"cmjax.commands.{verb}")
  config = Flag("config", str, None, module.CONFIG_FROM.value)
  override = Flag("config.KEY", str, None, "Sets a value of the config: --config.optim.lr=3e-4.")
  flags = (config, override, *module.FLAGS, *ALWAYS)
  lines = (line for flag in flags for line in _help_of_flag(flag))
  word = f" [{FIRST_WORD[verb].upper()}]" if verb in FIRST_WORD else ""
  usage = f"usage: cmjax {verb}{word} [--flag=value ...]"
  return "\n".join([usage, "", (module.__doc__ or "").strip(), "", "flags:", *lines])


def _help_of_flag(flag: Flag) -> Iterator[str]:
  default = f" Default: {flag.default}." if flag.kind is not bool and flag.default else ""
  name = f"--{flag.name}" + ("" if flag.kind is bool else "=")
  width = min(shutil.get_terminal_size().columns, 100) - 26
  first, *others = textwrap.wrap(flag.help + default, max(width, 30))
  yield f"  {name:22}  {first}"
  yield from (" " * 26 + line for line in others)


def _no_verb(verb: str) -> str:
  verbs = [*EXPERIMENTS, *TOOLS]
  if not verb:
    return f"Say what to do: cmjax VERB, one of {', '.join(verbs)}."
  nearest = difflib.get_close_matches(verb, verbs, n=1, cutoff=0.5)
  advice = f"Did you mean {nearest[0]}?" if nearest else f"Choose from: {', '.join(verbs)}."
  return f"There is no verb {verb!r}. {advice}"
