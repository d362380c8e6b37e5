"""What the verbs share: flags of the same meaning, and how they answer."""

import argparse
import contextlib
import enum
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cmjax.base import cluster, limits, parts, printable, ranges
from cmjax.base.device_memory import OutOfMemory
from cmjax.base.ranges import Count, CountOrNone, Place, Seed, Workdir


class Flag(NamedTuple):
  """A flag of one or more verbs.

  Attributes:
    name: without its hyphens.
    kind: str, or an annotation of `cmjax.base.ranges`: Count, Folder, bool.
    default: its value where it is not given.
    help: a sentence for --help.
    purpose: for the message of a verb that cannot do without it.
  """

  name: str
  kind: Any
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


WORKDIR = Flag("workdir", Workdir, None, "Folder of the run.", "the folder of the run")
MODEL = Flag(
  "model",
  str,
  None,
  "A model in one file: its name, or a .safetensors of cmjax convert --export.",
  "a model in one file",
)
SAMPLER = Flag("sampler", str, None, "One of config.samplers. By default all of them.")
NUM_SAMPLES = Flag(
  "num_samples",
  Count | None,
  None,
  "How many samples of each sampler. By default 64, or for a search as many as its score needs.",
)
SEED = Flag("seed", Seed, 0, "Of the noise that samples start from.")
COORDINATOR = Flag("coordinator", str, None, "host:port of process 0, where no cluster tells it.")
NUM_PROCESSES = Flag("num_processes", Count, None, "Of the run, with --coordinator.")
PROCESS_ID = Flag("process_id", CountOrNone, None, "This one's, from 0, with --coordinator.")
# A verb that has these three joins the other processes of its run before it starts.
PROCESSES = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
# A verb that has this keeps what it compiles.
COMPILE_CACHE = Flag(
  "compile_cache",
  Place,
  "~/.cache/cmjax/xla",
  "Folder of compiled programs, for the next start. Empty: none. Where several processes run, by "
  "default .compiled beside the workdir: only the first of them writes.",
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


def parser_of(
  verb: str, description: str | None, usage: str | None = None
) -> argparse.ArgumentParser:
  """What reads the arguments of a verb without a config.

  Args:
    verb: its name.
    description: of the verb; its docstring.
    usage: the first lines of its help; None: made of the arguments.
  """
  return argparse.ArgumentParser(
    prog=f"cmjax {verb}",
    usage=usage,
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


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


def log_ours() -> None:
  """Lets through what cmjax logs, made printable: libraries underneath write dozens of lines."""
  logging.getLogger().setLevel(logging.WARNING)
  for name in ("absl", "asyncio"):  # what orbax logs as errors, it raises
    logging.getLogger(name).setLevel(logging.CRITICAL)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  printable.guard(logging.getLogger("cmjax"))


class Rank(logging.Filter):
  """Says in every line of a logger which process of several it is from."""

  def __init__(self, index: int, count: int):
    super().__init__()
    self._prefix = f"[{index}/{count}] "

  def filter(self, record: logging.LogRecord) -> bool:
    """Puts it before the record's message; lets every record through."""
    record.msg, record.args = self._prefix + record.getMessage(), ()
    return True


# --- what was typed ---


def typed(text: str, kind: Any, key: str) -> Any:
  """The value of a flag: a path's ~ is the home folder, 1e3 of a count is 1000.

  Raises:
    ValueError: it cannot be meant; in one line with what is allowed.
  """
  value = ranges.typed(text, kind, key)
  where = next((option.where for option in ranges.options(kind) if option.where), None)
  if not (where and value):
    return value
  path = str(where.path(value, key))
  return f"./{path}" if path.startswith("~") else path  # a file whose name begins so


def argument(kind: Any, key: str) -> Callable[[str], Any]:
  """`typed` as a type of argparse."""

  def read(text: str) -> Any:
    try:
      return typed(text, kind, key)
    except ValueError as error:
      raise argparse.ArgumentTypeError(str(error)) from error

  return read


# --- how it ends ---

MENDABLE = (ValueError, OSError, FloatingPointError, OutOfMemory)
REPORT = (
  "This is a fault of cmjax, not of your command: please report it, with the lines above and the "
  "command, as CONTRIBUTING.md says."
)


def answered(work: Callable[[], int | None], *, together: bool = False) -> int | None:
  """Runs a verb; what the user can mend is one line, and what is a fault of ours says so.

  Args:
    work: of the verb.
    together: whether it is for all processes of a cluster's job. Else the first does it alone, and
      the others say so and are done: N of them would do the same N times over, to the same files.

  Returns:
    Its exit code: 1 after an error, 130 where it was interrupted by hand, 141 where nobody reads
    any more what it prints.
  """
  if not together and (index := cluster.index()):
    print(  # noqa: T201
      f"cmjax: process {index} of this job has nothing to do: process 0 does this alone.",
      file=sys.stderr,
    )
    return 0
  try:
    with _without_echoes():
      try:
        return work()
      finally:
        sys.stdout.flush()
  except BrokenPipeError:  # `cmjax show ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
    return 141  # as a shell says it of those that SIGPIPE ends
  except (Exception, KeyboardInterrupt) as error:
    return told(error)


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
  """Keeps quiet what a failed save says once for every array that was still to be written.

  The error itself comes to the main thread. Orbax has closed its event loop by then, and
  tensorstore prints a traceback for each answer that it can no longer give.
  """
  before = sys.unraisablehook

  def hook(unraisable):
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
      before(unraisable)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before


def told(error: BaseException) -> int:
  """Says an error that is being handled, as `answered` does; returns the exit code."""
  if isinstance(error, KeyboardInterrupt):
    refuse("Interrupted.")
    return 130
  message = str(error) if isinstance(error, MENDABLE) else _of_machine(error)
  if message:
    logging.getLogger("cmjax").debug("Where it came from:", exc_info=True)
    return refuse(message)
  print(printable.message(traceback.format_exc()), file=sys.stderr)  # noqa: T201
  what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
  own = _users_line(error)
  return refuse(f"{what} {f'It came through your own code, {own}.' if own else REPORT}")


def refuse(message: object) -> int:
  """Says in one line on stderr what is wrong; returns the exit code of an error."""
  print(f"cmjax: {printable.message(message)}", file=sys.stderr)  # noqa: T201
  return 1


def _of_machine(error: BaseException) -> str:
  """What to say where the machine has not what is asked for; nothing of other errors."""
  text = str(error)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      f"The memory is not enough ({text.splitlines()[0][:200] if text else 'of the host'}). Lower "
      "batch_size or set microbatch; --mode=plan says what a step needs."
    )
  if isinstance(error, ImportError) and not (error.name or "").startswith("cmjax"):
    return f"{text}: install it with pip, or name another part."
  return ""


def _users_line(error: BaseException) -> str:
  """file:line of the innermost code that is neither cmjax's nor of a library; "" without."""
  ours, found = str(Path(__file__).parents[1]), ""
  libraries = ("site-packages", "dist-packages", f"lib/python{sys.version_info.major}", "<")
  for frame in traceback.extract_tb(error.__traceback__):
    name = frame.filename
    if not name.startswith(ours) and not any(part in name for part in libraries):
      found = f"{name}:{frame.lineno}"
  return found
