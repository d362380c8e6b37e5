"""Ranges: which values can be meant, and what people type for them."""

import math
import typing
from typing import Annotated, Any

import numpy as np
import pytest

from cmjax.base import ranges
from cmjax.base.ranges import Count, Positive, Range, Seed, Share

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
  ("hint", "good", "bad"),
  [
    (Positive, (1, 0.5, 1e30, 2e-38), (0, -1, NAN, INF, -INF, 1e-45, 1e39, 10**400, True, "1")),
    (Share, (0, 0.0, 0.999), (1, 1.0, -1e-9, NAN, True, "0.5")),
    (Count, (1, 2**31 - 1), (0, -1, 1.5, NAN, INF, 2**31, True, None, "3", 1e400)),
    (Seed, (0, 2**32 - 1), (-1, 2**32, 2**63, 0.5, NAN, False)),
    (float, (0, -1e30), (NAN, INF, 1e39, "x", None, True)),
    (int, (0, -3), (0.5, NAN, True, "1")),
    (bool, (True, False), (0, 1, None, "yes")),
    (Positive | None, (None, 0.1), (0, NAN, "off", False)),
    (Annotated[int | float, Range(0, ends="(]")], (1, 0.5), (0, -1, NAN)),
    (tuple[Share, ...], ((), (0.1, 0.2), [0.5]), ((1.0,), 0.5, "0.5", None, (NAN,))),
    (tuple[Share, Share] | None, (None, (0.1, 0.2)), ((0.1,), (0.1, 0.2, 0.3), (0.1, 2))),
    (tuple[str, ...], (("a",), ()), ("a", (1,), None)),
    (str, ("", "a"), (1, None, True)),
    (Any, (1, "x", None, ()), (NAN, INF)),
  ],
)  # fmt: skip
def test_what_can_be_meant_is_taken_and_all_else_is_one_line(hint, good, bad):
  for value in good:
    assert ranges.meant(value, hint, "a.b") == value
  for value in bad:
    with pytest.raises(ValueError, match=r"^a\.b.* must be ") as error:
      ranges.meant(value, hint, "a.b")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ((-1, Positive | None), "a=-1 must be positive, or None."),
    ((0, Count), "a=0 must be at least 1."),
    ((2.5, Count), "a=2.5 must be a whole number, at least 1."),
    ((2**31, Count), "a=2147483648 must be at least 1 and at most 2,147,483,647."),
    ((1.0, Share), "a=1.0 must be at least 0 and below 1."),
    ((NAN, Share), "a=nan must be a finite number, at least 0 and below 1."),
    ((NAN, float), "a=nan must be a finite number."),
    ((0.5, Annotated[float, Range(1, ends="(]", why="So.")]), "a=0.5 must be above 1. So."),
    (((2.0,), tuple[Share, ...]), "a[0]=2.0 must be at least 0 and below 1."),
    ((None, bool), "a=None must be True or False."),
    (("x" * 99, bool), f"a='{'x' * 56}... must be True or False."),
  ],
)  # fmt: skip
def test_the_line_says_what_was_got_and_what_is_allowed(value, words):
  with pytest.raises(ValueError) as error:
    ranges.meant(*value, "a")
  assert str(error.value) == words


def test_whole_numbers_of_other_kinds_become_python_s():
  for value in (1e3, 1000.0, np.int64(1000), np.float32(1000), np.asarray(1000)):
    taken = ranges.meant(value, Count, "a")
    assert taken == 1000 and type(taken) is int
  assert type(ranges.meant(np.float32(0.5), Share, "a")) is float


@pytest.mark.parametrize(
  ("hint", "texts", "value"),
  [
    (Positive | None, ("none", "None", "NULL", "off", "false", "no", " none "), None),
    (Count, ("1000", "1e3", "1_000", "1000.0", "+1000", " 1000 "), 1000),
    (bool, ("true", "True", "on", "yes", "1", "t"), True),
    (bool, ("false", "OFF", "no", "0", "f"), False),
    (tuple[float, ...], ("(0.9,)", "0.9", "[0.9]", "(0.9)", "0.9,"), (0.9,)),
    (tuple[str, ...], ("a,b", "('a', 'b')", "['a','b']", "(a, b)", "a, b"), ("a", "b")),
    (tuple[int, ...], ("()", "[]", "( )"), ()),
    (str, ("a b", "'a b'", '"a b"'), "a b"),
    (str | None, ("none", "null", "None"), None),
    (Any, ("none", "null", "None"), None),
    (Any, ("1", "0x1", " 1"), 1),
  ],
)
def test_spellings_that_people_type_are_taken(hint, texts, value):
  for text in texts:
    taken = ranges.typed(text, hint, "a")
    assert taken == value and type(taken) is type(value), text


@pytest.mark.parametrize(
  ("hint", "texts"),
  [
    (Positive | None, ("true", "on", "-1", "0", "nan", "inf", "", "1/3")),
    (Count, ("none", "off", "1e-3", "1.5", "1k", "1,000", "1e400", "many", "", "true", "0")),
    (bool, ("maybe", "2", "", "none", "-1")),
    (tuple[Share, ...], ("1.5", "a", "none", "{}")),
    (Seed, ("4294967296", "-1", "2**32", "1e20", "x")),
  ],
)
def test_what_cannot_be_read_is_answered_in_one_line(hint, texts):
  for text in texts:
    with pytest.raises(ValueError, match=r"^--a.* must be ") as error:
      ranges.typed(text, hint, "--a")
    assert len(str(error.value).splitlines()) == 1, text


def test_a_text_that_a_terminal_would_obey_is_quoted():
  with pytest.raises(ValueError) as error:
    ranges.typed("\x1b[31m", Count, "--a")
  assert "\x1b" not in str(error.value) and r"\x1b" in str(error.value)


def test_annotations_of_functions_classes_and_named_tuples_are_found():
  def factory(x, a: Count, *, b: Positive = None):  # pyright: ignore[reportArgumentType]
    return x, a, b

  class Made:
    def __init__(self, a: Count):
      self.a = a

  class Numbers(typing.NamedTuple):
    a: Count = 1

  assert ranges.of(factory) == {"a": Count, "b": Positive | None}
  assert ranges.of(Made)["a"] == ranges.of(Numbers)["a"] == Count
  assert ranges.of(len) == {}


def test_a_number_without_a_range_is_seen():
  for hint in (Count, Positive | None, tuple[Share, ...], bool, str | None, Any):
    assert ranges.declares(hint)
  for hint in (int, float | None, tuple[float, ...], Count | float):
    assert not ranges.declares(hint)
