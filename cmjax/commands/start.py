"""From the arguments of a verb with a config to its end: flags, processes, errors, exit codes."""

import faulthandler
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from cmjax.base import paths
from cmjax.commands import common, configs
from cmjax.commands.common import Flag

MODES = ("train", "sample", "evaluate", "reference", "search", "measure", "verify", "plan")
MODES += ("preflight", "show")


class _Typed(flags.ArgumentParser):
  """Reads a flag by what it may be."""

  def __init__(self, flag: Flag):
    self._flag = flag

  def parse(self, argument: Any) -> Any:
    """The value; a default is one already."""
    flag = self._flag
    is_text = isinstance(argument, str)
    return common.typed(argument, flag.kind, f"--{flag.name}") if is_text else argument


class Command(NamedTuple):
  """A command line that was understood.

  Attributes:
    verb: its module.
    title: the verb as the user wrote it: `cmjax train`, or --mode=train.
    values: of the flags.
    config: with the values that flags set; None where the verb does without.
    joined: whether this process has joined the others of its job already.
  """

  verb: ModuleType
  title: str
  values: flags.FlagValues
  config: ConfigDict | None
  joined: bool = False


def start(argv: Sequence[str], verb: str | None = None) -> None:
  """Runs a verb, and ends the process with its exit code; without a verb --mode says which."""
  _answer_with_stacks()
  # It tells of every kind of device that this machine lacks.
  logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
  app.run(join_and_run, argv=list(argv), flags_parser=lambda argv: parse(argv, verb, join=True))


def parse(
  argv: Sequence[str],
  verb: str | None,
  values: flags.FlagValues | None = None,
  *,
  join: bool = False,
) -> Command:
  """Defines the flags and gives them their values; what is mistyped is one message, exit code 1.

  Args:
    argv: its first is the name of the program.
    verb: None: all flags of all verbs, and --mode says which verb.
    values: to define the flags in; None: absl's own.
    join: whether to join the other processes where the config is a run's: to read that uses JAX.
  """
  values = flags.FLAGS if values is None else values
  try:
    plain = values.read_flags_from_files(argv[1:])  # of --flagfile
    spec, plain = configs.take(plain, "config")
    name = verb or configs.take(plain, "mode")[0] or MODES[0]
    module = importlib.import_module(f"cmjax.commands.{name if name in MODES else MODES[0]}")
    workdir = configs.take(plain, "workdir")[0]
    common.permit(*(configs.take(plain, flag.name)[0] for flag in common.ALWAYS))
    reads_run = spec is None and module.CONFIG_FROM is common.ConfigFrom.FLAG_OR_TRAINED
    joined = join and reads_run and common.COORDINATOR in module.FLAGS
    if joined:
      given = ((flag, configs.take(plain, flag.name)[0]) for flag in common.PROCESSES)
      _join(*(text and common.typed(text, flag.kind, f"--{flag.name}") for flag, text in given))
    model = configs.take(plain, "model")[0] if common.MODEL in module.FLAGS else None
    config = configs.load(spec, workdir, module.CONFIG_FROM, model)
    if config is not None:
      configs.allow_own_parts(spec, config, plain)
      plain = configs.override(config, plain)
    _define(values, module.FLAGS if verb else None)
    others = values([argv[0], *plain])[1:]  # --help ends here
  except flags.UnrecognizedFlagError as error:
    program = f"cmjax {verb}" if verb else "python -m cmjax.main"
    _exit(f"{error} ({program} --help has the flags)")
  except (flags.Error, ValueError, OSError) as error:
    _exit(re.sub("(?s)^flag --.*?: (?=--)", "", str(error)))  # ours begin with the flag
  except Exception as error:
    sys.exit(common.told(error))
  title = f"cmjax {verb}" if verb else f"--mode={name}"
  command = Command(module, title, values, config, joined)
  if wrong := _wrong(command, others):
    _exit(wrong)
  return command


def _wrong(command: Command, others: Sequence[str]) -> str | None:
  """What is wrong with a command whose flags could all be read."""
  values, verb = command.values, command.verb
  if others:
    return f"Unknown arguments {others}: options begin with --."
  workdir = values.workdir if common.WORKDIR in verb.FLAGS else None
  if command.config is None and (why := configs.why_missing(workdir, verb.CONFIG_FROM)):
    return why + " Or name a model: cmjax sample digits." * (common.MODEL in verb.FLAGS)
  for needed in verb.NEEDS:  # a flag, or one of several
    one_of = [needed] if isinstance(needed, Flag) else list(needed)
    given = [f"--{flag.name}" for flag in one_of if values[flag.name].value is not None]
    if not given:
      asked = ", or ".join(f"--{flag.name}, {flag.purpose}" for flag in one_of)
      return f"{command.title} needs {asked}."
    if len(given) > 1:
      return f"{command.title} takes one of {' and '.join(given)}, got both."
  return None


def _define(values: flags.FlagValues, of_verb: Sequence[Flag] | None) -> None:
  """Defines the flags of a verb; None: of all verbs, and --mode."""
  names = ["config"]
  flags.DEFINE_string("config", None, common.ConfigFrom.FLAG.value, flag_values=values)
  if of_verb is None:
    flags.DEFINE_enum("mode", MODES[0], MODES, "What to do.", flag_values=values)
    names.append("mode")
  for flag in (*(_all_flags() if of_verb is None else of_verb), *common.ALWAYS):
    if flag.kind is bool:
      flags.DEFINE_boolean(flag.name, flag.default, flag.help, flag_values=values)
      values[flag.name].parser = _Typed(flag)
    else:
      flags.DEFINE(_Typed(flag), flag.name, flag.default, flag.help, flag_values=values)
    names.append(flag.name)
  for name in names:  # absl's --help shows these, and --helpfull those of all libraries
    values.register_key_flag_for_module(sys.argv[0], values[name])


def _all_flags() -> Iterator[Flag]:
  """The flags of all verbs, each once, with the modes that it is of."""
  modes: dict[Flag, list[str]] = {}
  for mode in MODES:
    for flag in importlib.import_module(f"cmjax.commands.{mode}").FLAGS:
      modes.setdefault(flag, []).append(mode)
  for flag, users in modes.items():
    yield flag._replace(help=f"{flag.help} Modes: {', '.join(users)}.")


def _answer_with_stacks() -> None:
  """On SIGUSR2 the stacks of all threads go to stderr; before, it ended the process.

  Whoever waits for the other processes can be asked where. A run takes over with its own file.
  """
  number = getattr(signal, "SIGUSR2", None)  # not on Windows
  if number and signal.getsignal(number) is signal.SIG_DFL:
    faulthandler.register(number, all_threads=True)


def join_and_run(command: Command) -> int | None:
  """`run`, after this process has joined the others of its run: once, before any use of JAX."""
  values = command.values
  if _is_together(command) and not command.joined:
    _join(values.coordinator, values.num_processes, values.process_id)
  if common.COMPILE_CACHE in command.verb.FLAGS and (folder := _compile_cache(command)):
    from cmjax.base import sharding

    sharding.keep_compiled(folder)
  return run(command)


def _join(*processes: Any) -> None:
  from cmjax.base import sharding  # here, so that a misspelt flag need not wait for jax

  try:
    sharding.start(*processes)
  except sharding.OthersMissing as error:
    common.refuse(error)
    sys.exit(os.EX_UNAVAILABLE)  # 69, which launchers know from an error: the same command, again
  except (ValueError, RuntimeError) as error:
    _exit(error)
  index, count = sharding.process()
  if count > 1:
    logging.getLogger("cmjax").addFilter(common.Rank(index, count))


def _is_together(command: Command) -> bool:
  """Whether a verb is for all processes of a job, which join each other before it starts."""
  return common.COORDINATOR in command.verb.FLAGS


def _compile_cache(command: Command) -> str | None:
  """The folder of compiled programs: for several processes one that all see, beside the workdir.

  JAX writes them on process 0 alone. In a folder of each host's own the others would compile again
  at each start.
  """
  values, name = command.values, common.COMPILE_CACHE.name
  if _is_together(command) and common.WORKDIR in command.verb.FLAGS and values.workdir:
    from cmjax.base import sharding

    if sharding.process()[1] > 1 and values[name].using_default_value:
      return os.fspath(paths.absolute(paths.place(values.workdir)).parent / ".compiled")
  return values[name].value or ""


def run(command: Command) -> int | None:
  """Runs the verb; errors that are the user's to mend are one message, not a stack trace."""
  common.log_ours()
  work = lambda: command.verb.run(command.values, command.config)
  return common.answered(work, together=_is_together(command))


def _exit(message: object) -> NoReturn:
  sys.exit(common.refuse(message))
