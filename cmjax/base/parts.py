"""Users' own parts: objects that a config may name, because their author marked them for it.

A config names a part of somebody else's package as `package.module:Name`, or by the name of an
entry point of the group `cmjax.parts`. A config may come from a stranger's run, so a name is no
permission, twice over. A module is imported, which runs it, only if an installed package declares
it as an entry point or the user allowed it (`allow`); one that this program has imported already is
looked at. And an object is taken only if it carries the mark that `part` gives. `os:system` carries
no mark.
"""

import importlib
import importlib.metadata
import re
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

from cmjax.base.printable import shown

GROUP = "cmjax.parts"
HANDED_IN = "python:"  # in a record, before the name of a part that no config has named
_MARK = "__cmjax_part__"
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_allowed: set[str] = set()

T = TypeVar("T", bound=Callable[..., Any])


def part(thing: T) -> T:
  """Marks a class or function as meant for configs of cmjax: `net.name="my_package:Mine"`.

  A subclass of a marked class is not marked: mark it too.

  >>> @part
  ... class Mine:
  ...   pass
  >>> is_part(Mine), is_part(type("Derived", (Mine,), {}))
  (True, False)
  """
  setattr(thing, _MARK, thing.__qualname__)
  return thing


def is_part(thing: Any) -> bool:
  """Whether the object itself was marked with `part`."""
  own = getattr(thing, "__dict__", {}).get(_MARK)
  return own is not None and own == getattr(thing, "__qualname__", None)


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
  """The parts that installed packages declare, by name."""
  return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def is_outside(name: Any) -> bool:
  """Whether a name of a config is one of somebody else's part."""
  return isinstance(name, str) and (":" in name or name in entry_points())


def was_handed_in(name: Any) -> bool:
  """Whether a record names a part that was handed in from Python, by no name of a config."""
  return isinstance(name, str) and name.startswith(HANDED_IN)


def missing(name: str, field: str, what: str = "") -> Callable[..., Any]:
  """A function in the place of a part that was handed in: whoever calls it is told to do it again.

  Args:
    name: in the record.
    field: of the experiment that it is handed in by: "network".
    what: it is, where that is not the name of the field: "sampler heun".
  """
  teacher = "; as a teacher, teacher=(network, params)" if field == "network" else ""

  def refuse(*args: Any, **kwargs: Any) -> Any:
    raise ValueError(
      f"The {what or field} {name.removeprefix(HANDED_IN)!r} of this run was handed in from "
      "Python, and its record has no way back to it. Hand it in again: "
      f"experiment._replace({field}=...){teacher}; or mark it with cmjax.base.parts.part and name "
      "it in the config, as package.module:Name."
    )

  return refuse


def allow(*modules: str) -> None:
  """Permits that these modules, and those inside of them, are imported because a config names them.

  A module runs when it is imported: allow what you trust, by its name, such as "my_package". The
  program allows what the user writes into its command line, and --allow_parts=my_package.
  """
  _allowed.update(filter(None, (module.strip() for module in modules)))


def modules_named(config: Any) -> set[str]:
  """The modules that names of parts in a config, or in a value of one, are in.

  >>> modules_named({"net": {"name": "my_package.networks:Mine", "dim": 2}})
  {'my_package.networks'}
  """
  if isinstance(config, str):
    return {config.partition(":")[0]} if _NAME.fullmatch(config) else set()
  if hasattr(config, "keys"):
    config = [config[key] for key in config.keys()]
  if not isinstance(config, list | tuple):
    return set()
  return {module for value in config for module in modules_named(value)}


def named(name: str, what: str) -> Any:
  """The part of that name.

  Args:
    name: `package.module:Name`, or an entry point of the group `cmjax.parts`.
    what: the config asks for, for errors: "network (net.name)".

  Raises:
    ValueError: no such module or object, it may not be imported, or it is not marked as a part.
  """
  if name in (points := entry_points()):
    return points[name].load()
  if not _NAME.fullmatch(name):
    raise ValueError(f"Unknown {what} {shown(name)}: it is not of the form package.module:Name.")
  module_name, _, path = name.partition(":")
  if module_name.partition(".")[0] in sys.stdlib_module_names:
    raise ValueError(_refusal(name, what, "it is of Python's own library"))
  permitted = _is_permitted(module_name, points)
  if not permitted and module_name not in sys.modules:
    raise ValueError(_not_allowed(name, what))
  try:
    thing = importlib.import_module(module_name) if permitted else sys.modules[module_name]
    for attribute in path.split("."):
      # A module may import others when it is asked for a name that it does not have.
      lazy = isinstance(thing, types.ModuleType) and not permitted and attribute not in vars(thing)
      if lazy:
        raise AttributeError(f"module {module_name!r} has no attribute {attribute!r}")
      thing = getattr(thing, attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"Unknown {what} {name!r}: {error}.") from error
  if not is_part(thing):
    raise ValueError(_refusal(name, what, "its author did not mark it"))
  return thing


def _is_permitted(module: str, points: dict[str, importlib.metadata.EntryPoint]) -> bool:
  inside = lambda outer: module == outer or module.startswith(f"{outer}.")
  return any(map(inside, _allowed)) or module in {point.module for point in points.values()}


def _not_allowed(name: str, what: str) -> str:
  module = name.partition(":")[0][:80]
  return (
    f"The {what} {shown(name)} is not loaded: to import {module} is to run it, and a config may "
    f"come from a stranger. If you trust it, allow it: --allow_parts={module}; in Python, import "
    "it before, or call cmjax.base.parts.allow."
  )


def _refusal(name: str, what: str, why: str) -> str:
  return (
    f"The {what} {shown(name)} is refused: {why}. A config can only name what is meant for cmjax: "
    "put `@cmjax.base.parts.part` above it, or declare it as an entry point of the group "
    f"{GROUP!r}."
  )


def name_of(thing: Any) -> str:
  """package.module:Name of an object, for records and messages."""
  kind = thing if hasattr(thing, "__qualname__") else type(thing)
  return f"{kind.__module__}:{kind.__qualname__}"
