"""What the verbs share: flags of the same meaning, and how they answer."""

import enum
from typing import Any, NamedTuple


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
  # To read a run: its checkpoint is believed, where config.json is no longer what it was made with.
  FLAG_OR_TRAINED = f"{FLAG} By default the config of the run in --workdir."
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


def experiment_of(config: Any) -> Any:
  """The experiment of a config, which the programs take; None of None."""
  from cmjax import experiment  # here, so that --help need not wait for jax

  return None if config is None else experiment.parse(config)


def say(answer: object) -> None:
  """Prints what was asked for; all else is logged."""
  print(answer)  # noqa: T201
