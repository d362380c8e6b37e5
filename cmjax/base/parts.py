"""Users' own parts: objects that a config may name, because their author marked them for it.

A config names a part of somebody else's package as `package.module:Name`, or by the name of an
entry point of the group `cmjax.parts`. A config may come from a stranger's run, so a name is no
permission: an object is taken only if it carries the mark that `part` gives, or if an installed
package declares it as an entry point. `os:system` carries no mark.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any, TypeVar

GROUP = "cmjax.parts"
HANDED_IN = "python:"  # in a record, before the name of a part that no config has named
_MARK = "__cmjax_part__"

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


def named(name: str, what: str) -> Any:
  """The part of that name.

  Args:
    name: `package.module:Name`, or an entry point of the group `cmjax.parts`.
    what: the config asks for, for errors: "network (net.name)".

  Raises:
    ValueError: no such module or object, or it is not marked as a part.
  """
  if name in (points := entry_points()):
    return points[name].load()
  module_name, _, path = name.partition(":")
  if module_name.partition(".")[0] in sys.stdlib_module_names:
    raise ValueError(_refusal(name, what, "it is of Python's own library"))
  try:
    thing = importlib.import_module(module_name)
    for attribute in path.split("."):
      thing = getattr(thing, attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"Unknown {what} {name!r}: {error}.") from error
  if not is_part(thing):
    raise ValueError(_refusal(name, what, "its author did not mark it"))
  return thing


def _refusal(name: str, what: str, why: str) -> str:
  return (
    f"The {what} {name!r} is refused: {why}. A config can only name what is meant for cmjax: "
    "put `@cmjax.base.parts.part` above it, or declare it as an entry point of the group "
    f"{GROUP!r}."
  )


def name_of(thing: Any) -> str:
  """package.module:Name of an object, for records and messages."""
  kind = thing if hasattr(thing, "__qualname__") else type(thing)
  return f"{kind.__module__}:{kind.__qualname__}"
