"""The config of a command line: a page or a run's own, with the values that are set by flags."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from cmjax import pages
from cmjax.base import parts, paths, ranges
from cmjax.commands.common import ConfigFrom


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


def load(
  spec: str | None, workdir: str | None, config_from: ConfigFrom, model: str | None = None
) -> ConfigDict | None:
  """The config of --config, or of the run in --workdir if that may take its place, or None.

  A model has its own, which no other takes the place of.

  Raises:
    ValueError, OSError: it cannot be read.
  """
  if model is not None:
    if spec is not None:
      raise ValueError(f"--config={spec}: a model has its own config. Drop one of the two.")
    from cmjax.program import models  # here, as JAX takes seconds to start

    return _with_tuples(ConfigDict(models.read(model).record))
  if spec is not None:
    config = pages.load(spec)
    return _with_tuples(config) if _is_stored(spec) else config
  if config_from is ConfigFrom.FLAG or workdir is None or not _has_config(workdir):
    return None
  from cmjax.program import stored_runs  # here, as JAX takes seconds to start

  trained = config_from is ConfigFrom.FLAG_OR_TRAINED
  read = stored_runs.read_trained_record if trained else stored_runs.read_record
  return _with_tuples(ConfigDict(read(workdir)))


def _is_stored(spec: str | None) -> bool:
  """Whether a config is one that a run wrote, and not a page."""
  return spec is None or spec.partition(":")[0].endswith(".json")


def allow_own_parts(spec: str | None, config: ConfigDict, argv: Sequence[str]) -> None:
  """Allows the modules of the parts that the user names: by flags, or in a page of their own.

  A page has run already. What a stored config names may be a stranger's, and is not allowed.
  """
  typed = [ranges.literal(text) for _, text in _given(config, argv)[0]]
  own = {} if _is_stored(spec) else config
  parts.allow(*parts.modules_named(typed), *parts.modules_named(own))


def _has_config(workdir: str) -> bool:
  return (paths.place(workdir, "--workdir") / "config.json").is_file()


def why_missing(workdir: str | None, config_from: ConfigFrom) -> str | None:
  """What to say of a command line without a config, if its verb cannot do without one."""
  missing = "Flag --config must have a value other than None"
  if config_from is ConfigFrom.FLAG:
    return f"{missing}: a page, or the config.json of a run."
  if workdir is not None:
    return f"{missing}, or --workdir must name the folder of a run: {workdir} has no config.json."
  if config_from in (ConfigFrom.FLAG_OR_RUN, ConfigFrom.FLAG_OR_TRAINED):
    return f"{missing}, or --workdir must name the folder of a run."
  return None


def _with_tuples(config: ConfigDict) -> ConfigDict:
  """Lists as the tuples that they were before JSON: flags can set tuples alone."""

  def convert(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: convert(item) for key, item in value.items()}
    return tuple(map(convert, value)) if isinstance(value, list) else value

  return ConfigDict(convert(config.to_dict()))


def override(config: ConfigDict, argv: Sequence[str]) -> list[str]:
  """Sets the values of the --config.key flags in a config; returns the other arguments.

  A value is read by what its key may be: `1e3` is a count, `off` and `none` switch off what can be,
  `main,short` is a tuple of names.

  Raises:
    ValueError: with the choices, for a key that the config does not have; with what is allowed, for
      a value that cannot be.
  """
  given, others = _given(config, argv)
  names = [one for one in given if one[0].rpartition(".")[2] == "name" or _is_section(config, one)]
  rest = [one for one in given if one not in names]
  for key, text in names:  # what takes the other settings depends on these
    _check_key(config, key)
    _set(config, key, text, None)
  for key, _ in rest:
    if not _is_of_source(key):
      _check_key(config, key, (key,))  # its sections: the key itself may be an optional one
  if rest:
    from cmjax.experiment import declared  # here, as JAX takes seconds to start

    optional = declared.left_out(config)
    for key, _ in rest:
      _check_key(config, key, optional)
    hints = declared.hints(config) | optional
    for key, text in rest:
      _set(config, key, text, hints.get(key))
  return others


def _given(config: ConfigDict, argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """[(key, text)] of the --config.key flags, and the other arguments."""
  given, others, rest = [], [], iter(argv)
  flag = re.compile(r"--?(no)?config\.([^=]+)(=?)(.*)", re.DOTALL)
  for argument in rest:
    if argument == "--":
      return given, [*others, argument, *rest]
    match = flag.fullmatch(argument)
    if not match:
      others.append(argument)
    elif match[3]:
      given.append((match[2], match[4]))
    elif isinstance(_value(config, match[2]), bool):
      given.append((match[2], "false" if match[1] else "true"))
    else:
      given.append((match[2], next(rest, "")))
  return given, others


def _value(config: Any, path: str) -> Any:
  for key in path.split("."):
    config = config[key] if hasattr(config, "keys") and key in config else None
  return config


def _is_section(config: ConfigDict, given: tuple[str, str]) -> bool:
  return hasattr(_value(config, given[0]), "keys")


def _set(config: ConfigDict, path: str, text: str, hint: Any) -> None:
  """Sets one value; without a hint it stays of the kind that it is."""
  above, _, key = path.rpartition(".")
  section = _value(config, above) if above else config
  before = None if section is None else section.get(key)
  if isinstance(before, ConfigDict):
    value = ranges.literal(text)
    if not isinstance(value, dict):
      raise ValueError(f"--config.{path}={text} must be a section, as {{'name': 'adam', ...}}.")
    value = ConfigDict(value)
  else:
    hint = ranges.like(before) if hint is None else hint
    value = ranges.typed(text, hint, f"--config.{path}")
  with config.unlocked(), config.ignore_type():
    if section is None:  # of a source that the page does not have
      config.data[above.partition(".")[2]] = {key: value}
    else:
      section[key] = value


def _is_of_source(path: str) -> bool:
  """Whether a key is one of a source of data, which a page need not have: data.folder.path."""
  return path.startswith("data.") and path.count(".") == 2


def _check_key(config: ConfigDict, path: str, optional: Collection[str] = ()) -> None:
  """Raises for a key that the config does not have, and that is not left at its default there."""
  section, above = config, []
  for key in path.split("."):
    if not hasattr(section, "keys"):
      where = ".".join(["config", *above])
      raise ValueError(f"--config.{path}: {where} is a value, it has no keys.")
    if key not in section:
      if path in optional and (len(above) == path.count(".") or _is_of_source(path)):
        return
      where, source = ".".join(["config", *above]), f"{'.'.join([*above, key])}."
      takes = sorted(name.removeprefix(source) for name in optional if name.startswith(source))
      if takes and _is_of_source(path):
        raise ValueError(f"--config.{path}: {where}.{key} takes: {', '.join(takes)}.")
      split = (other.rpartition(".") for other in sorted(optional))
      others = [name for section_of, _, name in split if section_of == ".".join(above)]
      raise ValueError(
        f"--config.{path}: {where} has no {key!r}. It has: {', '.join(sorted(section))}."
        + f" It can have: {', '.join(others)}." * bool(others)
        + f" To read from {key}, set --config.data.name={key} as well." * (above == ["data"])
      )
    section, above = section[key], [*above, key]
