"""Paths of strings: one function for all flags and keys."""

import importlib
import pathlib

import pytest
from etils import epath

from cmjax.base import paths, stores


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


@pytest.fixture(name="served")
def _served(monkeypatch):
  """URLs without the packages that serve them: nothing is read or written here."""
  monkeypatch.setattr(stores, "serve", lambda scheme: None)


def test_a_run_is_on_a_disk_or_in_a_bucket_by_one_type(monkeypatch, served):
  monkeypatch.setenv("HOME", "/home/me")
  for text, path in (
    ("~/x", "/home/me/x"),
    ("runs/a", "runs/a"),
    ("gs://bucket/runs/a", "gs://bucket/runs/a"),
    ("s3://bucket/a/", "s3://bucket/a"),
    ("GS://bucket", "gs://bucket"),
  ):
    found = paths.place(text)
    assert isinstance(found, epath.Path) and str(found) == path
    assert stores.is_remote(found) == ("://" in path)
    assert found == paths.place(found)
  below = paths.place("s3://bucket/a") / "b"
  assert str(paths.absolute(below)) == "s3://bucket/a/b" and str(below.parent) == "s3://bucket/a"
  assert paths.place(pathlib.Path("a")) == epath.Path("a")
  assert str(paths.absolute(epath.Path("a"))) == str(pathlib.Path("a").absolute())


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "names nothing"),
    (
      "az://container/run",
      "az:// is not served here: a run is on a disk, at gs:// or at s3://. Mount",
    ),
    ("hf://datasets/x", "is not served here"),
    ("file:///tmp/x", "Drop the file://"),
    ("gs://", "names no folder of a bucket: gs://bucket/folder does"),
    ("gs:/bucket/run", "names no folder"),  # what pathlib makes of it
    ("gs:///run", "names no folder"),
    ("s3://bucket//run", "names no folder"),
    ("s3://bucket/../run", "names no folder"),
    ("gs://bucket/a\x1b[31mb", "characters"),
  ],
)
def test_what_cannot_be_the_place_of_a_run_is_one_line(text, words, served):
  with pytest.raises(ValueError, match="^--workdir=") as error:
    paths.place(text, "--workdir")
  assert words in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_package_that_is_missing_is_named_with_how_to_install_it(monkeypatch, scheme, package):
  def missing(name):
    raise ImportError(f"No module named {name!r}")

  monkeypatch.setattr(importlib, "import_module", missing)
  stores.serve.cache_clear()
  with pytest.raises(ValueError, match=rf"with {package}, .*pip install 'cmjax\[stores\]'"):
    paths.place(f"{scheme}://bucket/run")
