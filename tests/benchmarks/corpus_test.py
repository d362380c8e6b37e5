"""The seeds that every reader is fuzzed from, and the files that once broke one of them."""

import pathlib
import random
import runpy
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
fuzz = types.SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "robustness" / "fuzz.py")))
FILES = [(reader, path) for reader in fuzz.READERS for path in fuzz.seeds(reader)]
# Beside each reader, one of its seeds that it takes as it is.
WHOLE = dict(
  arrays="several.npz", card="of_samples.json", config="run.json", dataset_json="edm.json",
  manifest="images.json", npz="images.npz", parquet="hf.parquet", pickle="edm.pkl",
  picture="RGB.png", reference="edm.npz", safetensors="exported.safetensors",
  sampler_times="found.json", torch="zip.pt", zip="edm.zip",
)  # fmt: skip


def test_each_reader_takes_one_of_its_seeds(tmp_path):
  assert set(WHOLE) == set(fuzz.READERS)
  for reader, name in WHOLE.items():
    fuzz.beside(reader, tmp_path / reader)
    data = (fuzz.CORPUS / reader / name).read_bytes()
    said = fuzz.read(reader, data, tmp_path / reader)
    # The pickles are of a few arrays, with no network's names.
    assert not said or said.startswith("it is no network of EDM, EDM2 or jcm: expected"), reader


@pytest.mark.parametrize(("reader", "path"), FILES, ids=[f"{r}-{p.name}" for r, p in FILES])
def test_a_file_is_read_or_refused_in_one_line(reader, path, tmp_path):
  """And so is what a slip makes of it: cut short, a byte changed, a piece twice."""
  fuzz.beside(reader, tmp_path)
  data, draw = path.read_bytes(), random.Random(path.name)
  cuts = [draw.randrange(len(data)) for _ in range(6)]
  changed = [data[:i] + bytes([draw.randrange(256)]) + data[i + 1 :] for i in cuts]
  with fuzz.watched(tmp_path):
    for one in (data, b"", *(data[:i] for i in cuts), *changed, *(data[:i] + data for i in cuts)):
      fuzz.read(reader, one, tmp_path)
