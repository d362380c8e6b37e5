"""The seeds that every reader is fuzzed from, and the files that once broke one of them."""

import json
import pathlib
import random
import runpy
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
fuzz = types.SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "robustness" / "fuzz.py")))
FILES = [(reader, path) for reader in fuzz.READERS for path in fuzz.seeds(reader)]
# What is said of weights that were read, but have the names of no network.
NO_NETWORK = "it is no network of EDM, EDM2 or jcm: expected"


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_reader_takes_one_of_its_seeds(reader, tmp_path):
  fuzz.beside(reader, tmp_path)
  said = [fuzz.read(reader, path.read_bytes(), tmp_path) for path in fuzz.seeds(reader)]
  assert any(not one or one.startswith(NO_NETWORK) for one in said), said


@pytest.mark.parametrize(("reader", "path"), FILES, ids=[f"{r}-{p.name}" for r, p in FILES])
def test_a_file_is_read_or_refused_in_one_line(reader, path, tmp_path):
  """And so is what a slip makes of it: cut short, a byte changed, a piece twice."""
  fuzz.beside(reader, tmp_path)
  data, draw = path.read_bytes(), random.Random(path.name)
  cuts = [draw.randrange(len(data)) for _ in range(6)]
  changed = [data[:i] + bytes([draw.randrange(256)]) + data[i + 1 :] for i in cuts]
  made = (data, b"", *(data[:i] for i in cuts), *changed, *(data[:i] + data for i in cuts))
  with fuzz.watched(tmp_path):
    said = [fuzz.read(reader, one, tmp_path) for one in made]
  assert all(one.isprintable() for one in said)


# In the place of whatever a file of JSON says.
OTHERS = (None, "x", -1.5, 2.5, [], {}, {"a": 1}, 1e400)


def others(value, path=""):
  """(where, copy) of every copy of a value of JSON in which one entry is gone, or is another."""
  if isinstance(value, dict):
    for key, below in value.items():
      yield f"no {path}.{key}", {k: v for k, v in value.items() if k != key}
      for where, other in others(below, f"{path}.{key}"):
        yield where, value | {key: other}
  if isinstance(value, list):
    for i, below in enumerate(value):
      for where, other in others(below, f"{path}[{i}]"):
        yield where, [*value[:i], other, *value[i + 1 :]]
  for other in OTHERS:
    yield f"{path}={other!r}", other


@pytest.mark.parametrize(
  ("reader", "path"),
  [pair for pair in FILES if pair[1].suffix == ".json" and pair[1].read_bytes()[:1] in b"{["],
  ids=lambda one: getattr(one, "stem", one),
)
def test_a_file_that_lacks_or_mistakes_one_entry_is_read_or_refused_in_one_line(
  reader, path, tmp_path
):
  try:
    right = json.loads(path.read_bytes())
  except (ValueError, RecursionError):
    pytest.skip("no JSON")
  fuzz.beside(reader, tmp_path)
  if fuzz.read(reader, path.read_bytes(), tmp_path):
    pytest.skip("refused as it is")
  with fuzz.watched(tmp_path):
    for where, other in others(right):
      try:
        assert fuzz.read(reader, json.dumps(other).encode(), tmp_path).isprintable()
      except Exception as error:
        raise AssertionError(where) from error
