"""The seeds that every reader is fuzzed from, and the files that once broke one of them."""

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
