"""How a section of a config is read: a `name`, and the keyword arguments of what it names."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cmjax.base import parts

# A part of a config; a plain dict where it was read from a file, or is a default.
Section = ConfigDict | Mapping[str, Any]


class Settings(dict[str, Any]):
  """A section as a dict, whose missing setting is a ValueError that names it."""

  def __init__(self, settings: Mapping[str, Any], path: str = "") -> None:
    """`path`: of the section in its config, with a dot at its end."""
    super().__init__(settings)
    self._path = path

  def __missing__(self, key: str) -> Any:
    raise ValueError(f"The config needs {self._path}{key}, which is not there.")


def check_section(section: Any, path: str) -> None:
  """Raises ValueError for what is no section; `path` says where it stands in its config."""
  if not isinstance(section, ConfigDict | Mapping):
    raise ValueError(f"config.{path}={section!r} must be a section: a name, and its arguments.")


def pick(table: Any, name: str, what: str) -> Any:
  """table[name] (or the name itself, of a tuple of names), or an error that lists the choices."""
  if name not in table:
    raise ValueError(f"Unknown {what} {name!r}. Choose from: {', '.join(sorted(table))}.")
  return table[name] if isinstance(table, Mapping) else name


def pick_part(table: Mapping[str, Any], name: str, what: str) -> Any:
  """table[name], or else the user's own part of that name (`cmjax.base.parts`)."""
  outside = name not in table and parts.is_outside(name)  # in this order: to ask is to read files
  return parts.named(name, what) if outside else pick(table, name, what)


def call(factory: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
  """factory(*args, **kwargs), or an error that lists the arguments it takes."""
  named = arguments(factory)[len(args) :]
  accepted = [p.name for p in named]
  required = [p.name for p in named if p.default is p.empty]
  if (unknown := sorted(set(kwargs) - set(accepted))) and not takes_any(factory):
    raise ValueError(f"{what} takes no {', '.join(unknown)}. It takes: {', '.join(accepted)}.")
  if missing := sorted(set(required) - set(kwargs)):
    raise ValueError(f"{what} needs {', '.join(missing)}. It takes: {', '.join(accepted)}.")
  return factory(*args, **kwargs)


def lacks_input(part: str) -> ValueError:
  """What to say where a method needs a network that is told its guidance or segment."""
  key = {"segment": "num_segments"}.get(part, part)
  return ValueError(f"loss.{key} needs a network that is told its {part}: net.{part}=True.")


def arguments(factory: Callable[..., Any]) -> list[inspect.Parameter]:
  """The named arguments of a function, or of what makes an object of a class."""
  parameters = _signature(factory).parameters.values()
  return [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def takes_any(factory: Callable[..., Any]) -> bool:
  """Whether a function takes keyword arguments of any name, and checks them itself."""
  return any(p.kind is p.VAR_KEYWORD for p in _signature(factory).parameters.values())


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
  # Of a class, the signature that its metaclass hides.
  return inspect.signature(
    functools.partial(factory.__init__, None) if inspect.isclass(factory) else factory
  )


def read(config: Any, what: str, *own: str) -> list[Any]:
  """[name, *values of `own`, the keyword arguments of what the section names]; or a ValueError."""
  check_section(config, what)
  # A config that was stored beside a checkpoint has lists for tuples: JSON knows no other.
  kwargs = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
  own = ("name", *own)
  if missing := [key for key in own if key not in kwargs]:
    raise ValueError(f"config.{what} needs {', '.join(own)}; not there: {', '.join(missing)}.")
  return [*map(kwargs.pop, own), kwargs]
