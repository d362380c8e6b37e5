"""Text that came out of files, made fit for a terminal, a log and an error of one line.

A file name, the name of a class or a value of a card can hold bytes that a terminal obeys: they
move the cursor, hide what was printed, or turn the order of the letters around.
"""

import logging
from typing import Any

_LAYOUT = "\n\t"


def printable(text: str, *, layout: str = "") -> str:
  r"""The text with every character that is not printable written as an escape.

  Args:
    text: from a file, or with parts that are.
    layout: characters that stay as they are; for whole messages, "\n\t".

  >>> printable("a\x1b[2Jb")
  'a\\x1b[2Jb'
  """
  if text.isprintable():
    return text
  return "".join(c if c.isprintable() or c in layout else _escaped(c) for c in text)


def _escaped(character: str) -> str:
  return character.encode("unicode_escape").decode("ascii")


def message(text: object) -> str:
  """A whole message or answer, for a terminal: line breaks and tabs stay."""
  return printable(str(text), layout=_LAYOUT)


def shown(value: Any) -> str:
  """What a file says, for an error of one line: short, and without control characters.

  >>> shown("a" * 500)[-9:], shown((1, 2))
  ("aaaaa'...", '(1, 2)')
  """
  # repr of what a file nests could take forever: only flat things are written out.
  if isinstance(value, tuple | list):
    parts = [shown(v) if isinstance(v, int | float | str) else type(v).__name__ for v in value[:8]]
    inside = f"{', '.join(parts)}{', ...' if len(value) > 8 else ''}"
    return f"[{inside}]" if isinstance(value, list) else f"({inside})"
  if isinstance(value, str):
    return repr(value[:80]) + ("..." if len(value) > 80 else "")
  if isinstance(value, int) and abs(value) >= 2**70:
    return "a number of more than 20 digits"
  if isinstance(value, int | float) or value is None:
    return str(value)[:100]
  import numpy as np  # here, so that --help need not wait

  return str(value)[:100] if isinstance(value, np.dtype) else type(value).__name__


class Filter(logging.Filter):
  """Makes every record of a logger printable, whatever its parts came from."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Replaces the record's message; lets every record through."""
    record.msg, record.args = message(record.getMessage()), ()
    return True


_FILTER = Filter()


def guard(logger: logging.Logger) -> None:
  """Makes what is logged with this logger printable; once, however often it is called."""
  logger.addFilter(_FILTER)
