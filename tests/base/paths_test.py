"""Paths of strings: one function for all flags and keys."""

import pathlib

import pytest

from cmjax.base import paths


def test_a_home_is_expanded_and_all_else_stays(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert paths.local("~/x") == pathlib.Path("/home/me/x") and str(paths.local("~")) == "/home/me"
  for text in ("runs/a", "/tmp/x", "a b", "ä/文", "a:b", "x~", "./~x", "c:"):
    assert paths.local(text) == pathlib.Path(text)
  assert paths.local(pathlib.Path("a")) == pathlib.Path("a")


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "names nothing"),
    ("gs://bucket/run", "is a URL, and gs:// is not served here. Mount it"),
    ("s3://b", "is a URL"),
    ("https://x.org/a", "is a URL"),
    ("file:///tmp/x", "Drop the file://"),
    ("hf:/datasets/x", "is a URL"),  # what pathlib makes of it
    ("a\x00b", "characters that no name should have"),
    ("a\x1b[31mb", "characters"),
    ("a\nb", "characters"),
    ("a\u202eb", "characters"),
    ("~nobody_of_that_name/x", "Give the whole path"),
  ],
)
def test_what_cannot_be_a_path_is_one_line(text, words):
  with pytest.raises(ValueError, match="^--workdir=") as error:
    paths.local(text, "--workdir")
  said = str(error.value)
  assert words in said and said.isprintable() or words in said and "\u202e" not in said
  assert len(said.splitlines()) == 1 and "\x1b" not in said
