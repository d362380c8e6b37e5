"""Which modules a name in a config may import: to import is to run."""

import importlib.metadata
import json
import sys

import pytest
from absl import flags

from cmjax.base import parts
from cmjax.commands import start

BODY = """
import pathlib
from cmjax.base.parts import part

pathlib.Path(__file__).with_suffix(".ran").touch()

@part
def Mine(**kwargs):
  pass

def unmarked():
  raise AssertionError("it was called")

def __getattr__(name):
  pathlib.Path(__file__).with_suffix(".asked").touch()
  raise AttributeError(name)
"""


@pytest.fixture(name="stranger")
def _stranger(tmp_path, monkeypatch):
  """A package that can be imported, and a function that says which of its modules have run."""
  monkeypatch.setattr(parts, "_allowed", set())
  monkeypatch.syspath_prepend(tmp_path)
  folder = tmp_path / "a_strangers_package"
  (folder / "inner").mkdir(parents=True)
  for name in ("__init__", "nets", "other", "inner/__init__", "inner/deep"):
    (folder / f"{name}.py").write_text(BODY)
  yield lambda: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.ran"))
  for name in [name for name in sys.modules if name.startswith(folder.name)]:
    del sys.modules[name]


PACKAGE = "a_strangers_package"


@pytest.mark.parametrize(
  "name",
  [
    f"{PACKAGE}:Mine",
    f"{PACKAGE}.nets:Mine",
    f"{PACKAGE}.nets:unmarked",
    f"{PACKAGE}.nets:nothing",
    f"{PACKAGE}.inner.deep:Mine",
    f"{PACKAGE}.none:Mine",
    "antigravity_of_nobody:Mine",
    "cmjax.convert.__main__:main",
  ],
)
def test_a_name_alone_imports_nothing(stranger, name):
  before = set(sys.modules)
  with pytest.raises(ValueError, match="is not loaded: to import .*--allow_parts=") as stop:
    parts.named(name, "network (net.name)")
  assert stranger() == [] and set(sys.modules) == before
  assert "\n" not in str(stop.value) and len(str(stop.value)) < 400


@pytest.mark.parametrize(
  "name",
  ["", ":", "x:", ":x", "x", "x:y:z", "a b:c", "a.:b", ".a:b", "a..b:c", "a:b.", "../a:b", "a-b:c",
   "a\x1b[2J:b", "a\n:b", "1a:b"],
  ids=ascii,
)  # fmt: skip
def test_what_is_of_another_form_is_no_name(stranger, name):
  with pytest.raises(ValueError, match="it is not of the form package.module:Name") as stop:
    parts.named(name, "network (net.name)")
  assert str(stop.value).isprintable()


def test_what_the_user_allows_is_imported_and_must_still_be_marked(stranger):
  parts.allow(f"{PACKAGE}.nets")
  assert parts.named(f"{PACKAGE}.nets:Mine", "network").__name__ == "Mine"
  ran = stranger()
  assert ran == ["__init__.ran", "nets.ran"]
  with pytest.raises(ValueError, match="its author did not mark it"):
    parts.named(f"{PACKAGE}.nets:unmarked", "network")
  with pytest.raises(ValueError, match="is not loaded"):
    parts.named(f"{PACKAGE}.other:Mine", "network")
  with pytest.raises(ValueError, match="is not loaded"):
    parts.named(f"{PACKAGE}.nets_of_others:Mine", "network")
  assert stranger() == ran
  parts.allow(PACKAGE)
  assert parts.named(f"{PACKAGE}.inner.deep:Mine", "network").__name__ == "Mine"
  with pytest.raises(ValueError, match="Unknown network .*No module named"):
    parts.named(f"{PACKAGE}.none:Mine", "network")


def test_what_is_imported_already_is_looked_at_and_asked_nothing(stranger, tmp_path):
  __import__(f"{PACKAGE}.nets")
  assert parts.named(f"{PACKAGE}.nets:Mine", "network").__name__ == "Mine"
  with pytest.raises(ValueError, match="has no attribute 'nothing'"):
    parts.named(f"{PACKAGE}.nets:nothing", "network")
  assert not list(tmp_path.rglob("*.asked"))
  with pytest.raises(ValueError, match="its author did not mark it"):
    parts.named(f"{PACKAGE}.nets:pathlib.Path", "network")


def test_what_an_installed_package_declares_is_imported(stranger, tmp_path):
  folder = tmp_path / "a_strangers_package-1.0.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
  (folder / "entry_points.txt").write_text(f"[cmjax.parts]\nstrange = {PACKAGE}.nets:Mine\n")
  importlib.metadata.MetadataPathFinder.invalidate_caches()
  assert parts.named(f"{PACKAGE}.nets:Mine", "network").__name__ == "Mine"
  assert parts.named("strange", "network").__name__ == "Mine"
  with pytest.raises(ValueError, match="is not loaded"):
    parts.named(f"{PACKAGE}.other:Mine", "network")


def test_python_s_own_library_is_refused_whatever_is_allowed(stranger):
  parts.allow("os", "subprocess", "builtins")
  for name in (
    "os:system",
    "subprocess:run",
    "builtins:exec",
    "os.path:os.system",
    "antigravity:x",
  ):
    with pytest.raises(ValueError, match="it is of Python's own library"):
      parts.named(name, "network")


def test_the_modules_of_a_config_are_found_wherever_they_are_named():
  config = {"net": {"name": "a.b:C", "x": 3}, "evals": ({"features": "d:E.f"}, "g:h"), "path": "s3://x",
            "y": "C:\\x", "python": "python:a.b:C", "z": None}  # fmt: skip
  assert parts.modules_named(config) == {"a.b", "d", "g"}


# --- on the command line ---

PAGE = "from cmjax import pages\ndef get_config():\n  config = pages.load('toy2d_sct').unlock()\n"


def command(*arguments):
  values = flags.FlagValues()
  return start.parse(["cmjax verify", *arguments], "verify", values)


@pytest.fixture(name="stored")
def _stored(stranger, tmp_path):
  """A run whose config names the stranger's network."""
  from cmjax import pages

  config = pages.load("toy2d_sct").to_dict() | {"net": {"name": f"{PACKAGE}.nets:Mine", "dim": 2}}
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  return tmp_path / "run"


def may_import():
  try:
    return parts.named(f"{PACKAGE}.nets:Mine", "network") is not None
  except ValueError:
    return False


def test_what_a_stored_config_names_is_not_allowed_by_its_being_read(stored, stranger):
  command(f"--workdir={stored}")
  assert not may_import()
  command(f"--config={stored / 'config.json'}")
  command(f"--config={stored / 'config.json'}", f"--config.data.name={PACKAGE}.other:Mine")
  assert not may_import() and stranger() == []


@pytest.mark.parametrize(
  "arguments",
  [
    ("--config={run}/config.json", "--config.net.name=a_strangers_package.nets:Mine"),
    ("--config={run}/config.json", "--config.net.name", "a_strangers_package.nets:Mine"),
    ("--workdir={run}", "--allow_parts=a_strangers_package"),
    ("--workdir={run}", "--allow_parts", "numpy, a_strangers_package.nets"),
    ("--config=toy2d_sct", "--config.net.name=a_strangers_package.nets:Mine"),
    ("--config={page}",),
  ],
)
def test_what_the_user_types_or_writes_into_a_page_is_allowed(stored, tmp_path, arguments):
  page = tmp_path / "page.py"
  page.write_text(f"{PAGE}  config.net.name = '{PACKAGE}.nets:Mine'\n  return config\n")
  command(*(argument.format(run=stored, page=page) for argument in arguments))
  assert may_import()
