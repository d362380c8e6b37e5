"""What a setting may be: ranges as annotations, beside the argument of the factory that takes it.

  def adam(schedule, *, b1: Share = 0.9, eps: Positive = 1e-8, clip_norm: Positive | None = None)

`meant` says whether a value can be meant, by the annotation of its argument; `typed` reads what a
user typed by it. Nothing here is checked inside the factories: a config is checked at the door.
"""

import ast
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

from cmjax.base import paths

LARGEST, SMALLEST = float.fromhex("0x1.fffffep127"), 2.0**-126  # of float32, without subnormals
SHOWN = 10_000  # a bound beyond it is of the machine's, and only said where it is passed
NONE, YES, NO = ("none", "null"), ("true", "on", "yes"), ("false", "off", "no")


class Range(NamedTuple):
  """The numbers that a setting may have; all are finite, in float32 too.

  Attributes:
    low: the lower bound.
    high: the upper bound.
    ends: brackets as in mathematics: "(" and ")" leave the bound itself out.
    why: a sentence beside the refusal; of a number without bounds, why it has none.
  """

  low: float = -LARGEST
  high: float = LARGEST
  ends: str = "[]"
  why: str = ""

  def holds(self, value: int | float) -> bool:
    """Whether a number is in the range; one that float32 takes for 0 is none beside 0."""
    if not -LARGEST <= value <= LARGEST or 0 < abs(value) < SMALLEST:
      return False
    above = value > self.low if self.ends[0] == "(" else value >= self.low
    return above and (value < self.high if self.ends[1] == ")" else value <= self.high)

  def words(self, value: Any = 0) -> str:
    """The range, for a message about a value."""
    low, high = (f"{b:,}" if isinstance(b, int) else f"{b:,g}" for b in (self.low, self.high))
    said = []
    if self.low > -LARGEST:
      exclusive = "positive" if not self.low else f"above {low}"
      said.append(exclusive if self.ends[0] == "(" else f"at least {low}")
    passed = isinstance(value, (int, float)) and value > self.high
    if self.high < SHOWN or (self.high < LARGEST and passed):
      said.append(f"{'below' if self.ends[1] == ')' else 'at most'} {high}")
    return " and ".join(said)


class Where(NamedTuple):
  """Marks a string as a path, as `paths.local` takes them.

  Attributes:
    schemes: of object stores that are served as well: "gs://".
    empty: whether an empty one has a meaning: there is none.
    run: whether a run is there, or will be: a path as `paths.place` takes them.
  """

  schemes: tuple[str, ...] = ()
  empty: bool = False
  run: bool = False

  def path(self, text: str, what: str) -> Any:
    """The path that is meant.

    Raises:
      ValueError: in one line, if none can be.
    """
    return paths.place(text, what) if self.run else paths.local(text, what)


Positive = Annotated[float, Range(0, ends="(]")]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1, "[)")]
Count = Annotated[int, Range(1, 2**31 - 1)]
CountOrNone = Annotated[int, Range(0, 2**31 - 1)]  # 0: there is none
Size = Annotated[int, Range(1, 2**16)]  # of a network: channels, blocks, pixels
SizeOrNone = Annotated[int, Range(0, 2**16)]
Seed = Annotated[int, Range(0, 2**32 - 1, why="A larger seed would be taken for a smaller one.")]
LogSigma = Annotated[float, Range(-20, 20)]
Spread = Annotated[float, Range(0, 20, "(]", "It is the std of log sigma.")]
Sigma = Annotated[float, Range(0, 1e6, "(]")]
SigmaOrZero = Annotated[float, Range(0, 1e6)]
SigmaData = Annotated[
  float, Range(1e-3, 1e3, why="It is the std of the data as the network sees it; measure it.")
]
Angle = Annotated[float, Range(0, math.pi / 2, why="Times are angles; 0 is data, pi/2 noise.")]
InnerAngle = Annotated[
  float, Range(0, math.pi / 2, "()", "Times are angles; of noise levels: mid_sigmas.")
]
Exponent = Annotated[float, Range(0, 100, "(]")]
Scale = Annotated[float, Range(-1_000, 1_000, why="1 is no guidance.")]
Place = Annotated[str, Where(empty=True)]  # of a config, where "" says that there is none
PlaceOrNone = Annotated[str | None, Where(empty=True)]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Folder = Annotated[str, Where()]  # of a flag
Workdir = Annotated[str, Where(run=True)]  # of a flag
WorkdirOrNone = Annotated[str, Where(empty=True, run=True)]  # of a config, as Place


class Option(NamedTuple):
  """One of the types that an annotation allows."""

  type: Any  # NoneType, bool, int, float, str, tuple; anything else is not looked at
  range: Range | None = None
  where: Where | None = None
  items: tuple[Any, ...] = ()  # of a tuple; the last may be an Ellipsis
  choices: tuple[str, ...] = ()  # of a str; () if it may be any


def options(hint: Any) -> Iterator[Option]:
  """What an annotation allows, in order."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    marks = {type(mark): mark for mark in args[1:]}
    for option in options(args[0]):
      yield option._replace(range=marks.get(Range), where=marks.get(Where))
  elif origin in (typing.Union, types.UnionType):
    for arg in args:
      yield from options(arg)
  elif origin is Literal:
    yield Option(str, choices=args)
  elif origin in (tuple, Sequence) or hint is tuple:
    yield Option(tuple, items=args if origin is tuple or not args else (args[0], ...))
  else:
    yield Option(types.NoneType if hint is None else hint)


_KNOWN = (types.NoneType, bool, int, float, str, tuple)


def declares(hint: Any) -> bool:
  """Whether every number that an annotation allows has a range."""
  known = [option for option in options(hint) if option.type in _KNOWN]
  inner = (item for option in known for item in option.items if item is not ...)
  needs = [option for option in known if option.type in (int, float)]
  return all(option.range for option in needs) and all(map(declares, inner))


def can_be_typed(hint: Any) -> bool:
  """Whether all that an annotation allows are values of a config, not functions or networks."""
  return all(option.type in _KNOWN for option in options(hint))


@functools.cache
def of(factory: Callable[..., Any]) -> dict[str, Any]:
  """{argument: annotation} of a function, or of what makes an object of a class.

  An argument whose default is None may be None. Annotations that cannot be read are left out: they
  are of somebody else's part.
  """
  function = factory
  while hasattr(function, "func"):
    function = cast(Any, function).func
  if inspect.isclass(function) and not hasattr(function, "_fields"):
    function = factory = function.__init__
  try:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(factory).parameters
  except (NameError, TypeError, ValueError, AttributeError):
    return {}
  default = {name: parameters[name].default for name in hints if name in parameters}
  return {k: hint | None if default.get(k, 0) is None else hint for k, hint in hints.items()}


def meant(value: Any, hint: Any, key: str) -> Any:
  """The value, if it can be meant: 1e3 is the whole number 1000, a list is a tuple's.

  Args:
    value: of the setting.
    hint: the annotation of the argument that takes it.
    key: names the setting, for the message.

  Raises:
    ValueError: it cannot; with what is allowed.
  """
  if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of NumPy's
    value = value.item()
  allowed = list(options(hint))
  for option in allowed:
    fits, taken = _taken(value, option, key)
    if fits:
      return taken
  if any(option.type not in _KNOWN for option in allowed):
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"{key}={value!r} must be a finite number.")
    return value
  raise ValueError(f"{key}={_short(value)} must be {_words(value, allowed)}")


def _taken(value: Any, option: Option, key: str) -> tuple[bool, Any]:
  """Whether a value fits an option, and the value as that has it."""
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  bounds = option.range or Range()
  if option.type is int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return (True, int(value)) if number and whole and bounds.holds(value) else (False, None)
  if option.type is float:
    fits = number and bounds.holds(value)
    large = fits and abs(value) > 2**31  # which JAX takes for no int32
    return fits, float(value) if large else value
  if option.type is tuple:
    if not isinstance(value, (list, tuple)):
      return False, None
    hints = _item_hints(option, len(value))
    if hints is None:
      return False, None
    items = [meant(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True))]
    return True, type(value)(items)
  if option.choices:
    return value in option.choices, value
  if option.type is str and isinstance(value, str) and option.where:
    where = option.where
    if value and not value.startswith(where.schemes or "\0"):
      where.path(value, key)
    return bool(value) or where.empty, value
  return option.type in _KNOWN and isinstance(value, option.type), value


def _item_hints(option: Option, count: int) -> list[Any] | None:
  """The annotation of each item of a tuple; None where there is another number of them."""
  if not option.items:
    return [object] * count
  if option.items[-1] is ...:
    return [option.items[0]] * count
  return list(option.items) if len(option.items) == count else None


def _words(value: Any, allowed: Sequence[Option]) -> str:
  """What is allowed, and why, for a message about a value that is not."""
  said, whys = [], []
  for option in allowed:
    bounds = option.range or Range()
    words = bounds.words(value)
    if option.type in (int, float):
      right = isinstance(value, (int, float)) and not isinstance(value, bool)
      right = right and abs(value) <= LARGEST and (option.type is float or not value % 1)
      kind = "a whole number" if option.type is int else "a finite number"
      said.append(words if right and words else ", ".join(filter(None, (kind, words))))
      whys += [bounds.why] if bounds.why else []
    elif option.type is tuple:
      said.append(_tuple_words(option))
    elif option.choices:
      said.append(f"one of {', '.join(option.choices)}")
    else:
      said.append(_NAMES.get(option.type, "None"))
  return ", or ".join(dict.fromkeys(said)) + ". " * bool(whys) + " ".join(whys) + "." * (not whys)


_NAMES = {bool: "True or False", str: "a text that is not empty", types.NoneType: "None"}


def _tuple_words(option: Option) -> str:
  if not option.items:
    return "a tuple"
  many = option.items[-1] is ...
  each = _words("", list(options(option.items[0]))).rstrip(".")
  return f"a tuple of {'any number' if many else len(option.items)}, each {each}"


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


# --- what was typed ---


def typed(text: str, hint: Any, key: str) -> Any:
  """The value that a user means by a text.

  >>> typed("1e3", Count, "total_steps"), typed("off", Positive | None, "clip_norm")
  (1000, None)

  Args:
    text: as it was typed.
    hint: the annotation of the argument that takes it.
    key: names the setting, for the message.

  Raises:
    ValueError: it is no such value; with what is allowed.
  """
  text = text if any(option.type is str for option in options(hint)) else text.strip()
  allowed = {option.type: option for option in options(hint)}
  for kind, read in _READERS.items():
    if kind not in allowed:
      continue
    fits, value = read(text, allowed)
    if fits:
      return meant(value, hint, key)
  if any(kind not in _KNOWN for kind in allowed):
    return meant(literal(text), hint, key)
  converted = " could not convert string to float;" * (float in allowed)
  raise ValueError(f"{key}={_plain(text)}:{converted} it must be {_words(text, _all(allowed))}")


def _all(allowed: Mapping[Any, Option]) -> list[Option]:
  return list(allowed.values())


def _plain(text: str) -> str:
  """A text as it was typed, or quoted where it has what a terminal would obey."""
  return text if text.isprintable() and len(text) <= 60 else _short(text)


def _read_none(text: str, allowed: Mapping[Any, Option]) -> tuple[bool, Any]:
  switched_off = bool not in allowed and str not in allowed and text.lower() in NO
  return text.lower() in NONE or switched_off, None


def _read_bool(text: str, allowed: Mapping[Any, Option]) -> tuple[bool, Any]:
  digits = not {int, float} & set(allowed)
  yes, no = (*YES, *("1",) * digits, "t", "y"), (*NO, *("0",) * digits, "f", "n")
  return text.lower() in yes + no, text.lower() in yes


def _read_number(text: str, allowed: Mapping[Any, Option]) -> tuple[bool, Any]:
  try:
    return True, int(text)  # of any size, exactly
  except ValueError:
    pass
  try:
    return True, float(text)
  except ValueError:
    return False, None


def _read_tuple(text: str, allowed: Mapping[Any, Option]) -> tuple[bool, Any]:
  """(1, 2), [1, 2], 1,2, a,b or one item."""
  value = literal(text)
  if isinstance(value, (tuple, list)):
    return True, tuple(value)
  if isinstance(value, str):
    hint = (allowed[tuple].items or (str,))[0]
    items = [part.strip() for part in re.sub(r"^[(\[]|,?[)\]]$", "", value).split(",")]
    try:
      return True, tuple(typed(part, hint, "") for part in items if part)
    except ValueError:
      return False, None
  return not isinstance(value, (dict, set, types.NoneType)), (value,)


def _read_text(text: str, allowed: Mapping[Any, Option]) -> tuple[bool, Any]:
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
  return True, text[1:-1] if quoted else text


_READERS = {
  types.NoneType: _read_none,
  bool: _read_bool,
  int: _read_number,
  float: _read_number,
  tuple: _read_tuple,
  str: _read_text,
}


def literal(text: str) -> Any:
  """A Python literal, none and null and true and off as people write them, or else a string."""
  word = text.strip().lower()
  if word in (*NONE, *YES, *NO):
    return None if word in NONE else word in YES
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def like(value: Any) -> Any:
  """The annotation of a setting that nothing declares: it stays what it is now."""
  plain = (bool, int, float, str)
  if isinstance(value, (tuple, list)):
    return tuple
  return type(value) if isinstance(value, plain) else Any
