"""The config of a command line: a page or a run's own, with the values that are set by flags."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cmjax import pages
from cmjax.base import parts
from cmjax.commands.common import ConfigFrom


class _AnyValue(flags.ArgumentParser):
  """A Python literal, or else a string."""

  def parse(self, argument: Any) -> Any:
    try:
      return ast.literal_eval(argument)
    except (ValueError, SyntaxError):
      return argument


# Without it a value that is None in the config (clip_norm, a switched-off part) could not be set.
config_flags.register_flag_parser_for_type(type(None), _AnyValue())


def take(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
  """The last value of --name, and the other arguments; a --name without a value is one of these.

  >>> take(["--config=a", "--seed=1", "--config", "b"], "config")
  ('b', ['--seed=1'])
  """
  value, others, rest = None, [], iter(argv)
  for argument in rest:
    if argument == "--":
      return value, [*others, argument, *rest]
    if argument.startswith((f"--{name}=", f"-{name}=")):
      value = argument.partition("=")[2]
    elif argument in (f"--{name}", f"-{name}"):
      following = next(rest, None)
      if following is None:
        others.append(argument)
      else:
        value = following
    else:
      others.append(argument)
  return value, others


def load(spec: str | None, workdir: str | None, config_from: ConfigFrom) -> ConfigDict | None:
  """The config of --config, or of the run in --workdir if that may take its place, or None.

  Raises:
    ValueError, OSError: it cannot be read.
  """
  if spec is not None:
    config = pages.load(spec)
    return _with_tuples(config) if _is_stored(spec) else config
  if config_from is ConfigFrom.FLAG or workdir is None or not _has_config(workdir):
    return None
  from cmjax.program import stored_runs  # here, as JAX takes seconds to start

  return _with_tuples(ConfigDict(stored_runs.read_record(workdir)))


def _is_stored(spec: str | None) -> bool:
  """Whether a config is one that a run wrote, and not a page."""
  return spec is None or spec.partition(":")[0].endswith(".json")


def allow_own_parts(spec: str | None, values: flags.FlagValues) -> None:
  """Allows the modules of the parts that the user names: by flags, or in a page of their own.

  A page has run already. What a stored config names may be a stranger's, and is not allowed.
  """
  if values["config"].value is None:
    return
  typed = dict(config_flags.get_override_values(values["config"]))
  own = {} if _is_stored(spec) else values.config
  parts.allow(*parts.modules_named(typed), *parts.modules_named(own))


def _has_config(workdir: str) -> bool:
  return (Path(workdir).expanduser() / "config.json").is_file()


def why_missing(workdir: str | None, config_from: ConfigFrom) -> str | None:
  """What to say of a command line without a config, if its verb cannot do without one."""
  missing = "Flag --config must have a value other than None"
  if config_from is ConfigFrom.FLAG:
    return f"{missing}: a page, or the config.json of a run."
  if workdir is not None:
    return f"{missing}, or --workdir must name the folder of a run: {workdir} has no config.json."
  if config_from is ConfigFrom.FLAG_OR_RUN:
    return f"{missing}, or --workdir must name the folder of a run."
  return None


def _with_tuples(config: ConfigDict) -> ConfigDict:
  """Lists as the tuples that they were before JSON: flags can set tuples alone."""

  def convert(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: convert(item) for key, item in value.items()}
    return tuple(map(convert, value)) if isinstance(value, list) else value

  return ConfigDict(convert(config.to_dict()))


def define(config: ConfigDict, argv: Sequence[str], values: flags.FlagValues) -> None:
  """Defines the flag config, and one for each --config.key in argv.

  Raises:
    ValueError: with the choices, for a key that the config does not have.
  """
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
  except (AttributeError, KeyError):
    if wrong := _wrong_key(config, argv):
      raise ValueError(wrong) from None
    raise


def _wrong_key(config: ConfigDict, argv: Sequence[str]) -> str | None:
  """What is wrong with the first --config.key that the config does not have."""
  override = re.compile(r"--?(?:no)?config\.([^=]+)")
  for path in (match[1] for match in map(override.match, argv) if match):
    section, above = config, []
    for key in path.split("."):
      if not hasattr(section, "keys"):
        return f"--config.{path}: config.{'.'.join(above)} is a value, it has no keys."
      if key not in section:
        where = ".".join(["config", *above])
        return f"--config.{path}: {where} has no {key!r}. It has: {', '.join(sorted(section))}."
      section, above = section[key], [*above, key]
  return None
