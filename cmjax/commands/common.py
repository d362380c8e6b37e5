"""What the verbs share: flags of the same meaning, and how they answer."""

import argparse
import enum
import logging
import sys
from typing import Any, NamedTuple

from cmjax.base import limits, parts, printable


class Flag(NamedTuple):
  """A flag of one or more verbs.

  Attributes:
    name: without its hyphens.
    kind: str, int or bool.
    default: its value where it is not given.
    help: a sentence for --help.
    purpose: for the message of a verb that cannot do without it.
  """

  name: str
  kind: type
  default: Any
  help: str
  purpose: str = ""


class ConfigFrom(enum.Enum):
  """Where a verb's config comes from; the value is the help of its --config."""

  FLAG = "The experiment: a page, page:variant, or a config.json."
  FLAG_OR_RUN = f"{FLAG} By default the config.json of the run in --workdir."
  FLAG_OR_RUN_OR_NONE = f"{FLAG_OR_RUN} With neither, no network is looked at."


WORKDIR = Flag("workdir", str, None, "Folder of the run.", "the folder of the run")
SAMPLER = Flag("sampler", str, None, "One of config.samplers. By default all of them.")
NUM_SAMPLES = Flag("num_samples", int, 64, "How many samples of each sampler.")
SEED = Flag("seed", int, 0, "Of the noise that samples start from.")
COORDINATOR = Flag("coordinator", str, None, "host:port of process 0, where no cluster tells it.")
NUM_PROCESSES = Flag("num_processes", int, None, "Of the run, with --coordinator.")
PROCESS_ID = Flag("process_id", int, None, "This one's, from 0, with --coordinator.")
# A verb that has these three joins the other processes of its run before it starts.
PROCESSES = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
# A verb that has this keeps what it compiles.
COMPILE_CACHE = Flag(
  "compile_cache",
  str,
  "~/.cache/cmjax/xla",
  "Folder of compiled programs, for the next start. Empty: none.",
)

# Every verb has these: what the user permits foreign files.
ALLOW_PARTS = Flag(
  "allow_parts", str, None, "Packages that a stored config may load parts from: my_package,other."
)
LIMITS = Flag(
  "limits", str, None, "Limits of foreign files to raise: json_bytes=1e9 (cmjax/base/limits.py)."
)
ALWAYS = (ALLOW_PARTS, LIMITS)


def permit(allow_parts: str | None, raised: str | None) -> None:
  """Does what the flags of `ALWAYS` say.

  Raises:
    ValueError: there is no such limit.
  """
  parts.allow(*(allow_parts or "").split(","))
  limits.allow(limits.parse(raised or ""))


def add_always(parser: argparse.ArgumentParser) -> None:
  """Adds `ALWAYS` to the arguments of a verb without a config."""
  for flag in ALWAYS:
    parser.add_argument(f"--{flag.name}", help=flag.help)


def experiment_of(config: Any) -> Any:
  """The experiment of a config, which the programs take; None of None."""
  from cmjax import experiment  # here, so that --help need not wait for jax

  return None if config is None else experiment.parse(config)


def say(answer: object) -> None:
  """Prints what was asked for; all else is logged."""
  print(printable.message(answer))  # noqa: T201


def complain(error: object) -> None:
  """Prints why a command ended."""
  print(f"cmjax: {printable.message(error)}", file=sys.stderr)  # noqa: T201


def log_ours() -> None:
  """Lets through what cmjax logs, made printable: libraries underneath write dozens of lines."""
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  printable.guard(logging.getLogger("cmjax"))
