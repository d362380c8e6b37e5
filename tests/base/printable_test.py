"""Text from files on its way to a terminal: nothing that a terminal obeys is left."""

import logging

import pytest

from cmjax.base import printable

HOSTILE = {
  "\x1b[2J\x1b[H": r"\x1b[2J\x1b[H",  # clears the screen
  "\x1b]0;owned\x07": r"\x1b]0;owned\x07",  # the window's title
  "\x9b31m": r"\x9b31m",  # the same as ESC [
  "good\rEvil": r"good\rEvil",  # overwrites the line
  "a\x08b": r"a\x08b",
  "gnp\u202eexe": r"gnp\u202eexe",  # turns the order of the letters around
  "a\u2028b": r"a\u2028b",
  "a\ud800": r"a\ud800",
  "a\0b": r"a\x00b",
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_terminal_obeys_is_written_as_an_escape(text):
  assert printable.printable(text) == HOSTILE[text]
  assert printable.printable(text).isprintable()
  assert printable.message(f"two\nlines\t{text}") == f"two\nlines\t{HOSTILE[text]}"
  assert printable.shown(text).isprintable()


def test_readable_text_stays_as_it_is():
  for text in ("", "plain", "猫 é ß ✓", "x^2 + 'y' \\ \"z\""):
    assert printable.printable(text) is text


def test_what_is_logged_is_printable_whatever_part_it_is_in(caplog):
  logger = logging.getLogger("cmjax.test_of_printable")
  printable.guard(logger)
  printable.guard(logger)
  with caplog.at_level("INFO", logger.name):
    logger.info("read %s of %d", "a\x1b[2J.png", 3)
    logger.warning("\x1b[31m")
    logger.info("100% of \x07")
  assert [r.getMessage() for r in caplog.records] == [
    r"read a\x1b[2J.png of 3", r"\x1b[31m", r"100% of \x07",
  ]  # fmt: skip
  assert len(logger.filters) == 1
