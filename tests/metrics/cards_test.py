"""Cards: what is on one, and when two can be compared."""

import copy
import json
import subprocess
import sys

import pytest

from cmjax.metrics import cards, compare

CARD = {
  "values": {"frechet": 2.5, "kernel": 0.001, "kernel_std": 0.0002, "precision": 0.6},
  "floor": {"frechet": 1.25, "precision": 0.7},
  "floor_num": 10_000,
  "score": "FID",
  "detector": {"name": "inception", "variant": "edm", "weights_sha256": "ab"},
  "reference": {"kind": "moments", "sha256": "cd", "file": "cifar10.npz", "num": None},
  "images": {"kind": "samples", "num": 50_000, "digest": "01", "seed": 0, "first": 0},
  "rounding": "round",
  "options": {"num_subsets": 100, "subset_size": 1_000, "k": 3},
  "sampler": {"key": "one_step", "nfe": 1, "times": [1.56]},
  "ema": {"key": "main", "half_life_images": 500_000},
  "step": 400_000,
  "config_sha256": "ef",
  "versions": {"jax": "0.10.2"},
}


def changed(values):
  """CARD with values at dotted keys."""
  card = copy.deepcopy(CARD)
  for path, value in values.items():
    *above, key = path.split(".")
    section = card
    for name in above:
      section = section[name]
    section[key] = value
  return card


def test_a_card_comes_back_as_it_was_written(tmp_path):
  path = cards.write(tmp_path / "cards", "fd_one_step/main step1", CARD)
  assert path.name == "fd_one_step-main-step1.json"
  assert cards.read(path) == {"format": 1, **CARD}
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
  ("old", "new"),
  [("2.5", "1.5"), ("edm", "tf"), ("50000", "50001"), ('"round"', '"truncate"'), ('"01"', '"02"')],
)
def test_a_card_that_was_changed_is_refused(tmp_path, old, new):
  path = cards.write(tmp_path, "a", CARD)
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new, 1))
  with pytest.raises(ValueError, match="it was changed since it was written"):
    cards.read(path)


def test_every_number_is_told_with_its_floor():
  assert cards.lines(CARD) == [
    "FID 2.5; floor 1.25 (10,000 held-out images)",
    "kernel 0.001 +- 0.0002",
    "precision 0.6; floor 0.7 (10,000 held-out images)",
  ]


@pytest.mark.parametrize(
  ("values", "reason"),
  [
    ({"detector.variant": "clean"}, "detector.variant: edm in A, clean in B"),
    ({"detector.weights_sha256": "xy"}, "detector.weights_sha256: ab in A, xy in B"),
    ({"detector.resize": "bilinear"}, "detector.resize: not there in A, bilinear in B"),
    ({"score": "FD-DINOv2"}, "score: FID in A, FD-DINOv2 in B"),
    ({"reference.sha256": "xy"}, "reference.sha256: cd in A, xy in B"),
    ({"images.num": 10_000}, "images.num: 50000 in A, 10000 in B"),
    ({"rounding": "truncate"}, "rounding: round in A, truncate in B"),
    ({"options.subset_size": 500}, "options.subset_size: 1000 in A, 500 in B"),
    ({"best_of": 3}, "best_of: 1 in A, 3 in B"),
    (
      {"values": {"recall": 0.5}},
      "values: frechet, kernel, kernel_std, precision in A, recall in B",
    ),
  ],
)
def test_a_field_that_makes_cards_incomparable_is_named(values, reason):
  assert compare.incomparable(CARD, changed(values)) == [reason]
  assert f"They cannot be compared:\n  {reason}" in compare.table(CARD, changed(values))


@pytest.mark.parametrize(
  "values",
  [
    {},
    {"values.frechet": 3.0, "floor": None},
    {"sampler.nfe": 2, "sampler.key": "two_step"},
    {"ema.half_life_images": 1, "step": 7, "config_sha256": "xy"},
    {"images.digest": "02", "images.seed": 1, "images.first": 50_000},
    {"versions.jax": "0.12.0", "device": "8 x TPU v5p"},
    {"reference.file": "copy.npz"},
    {"rounding": cards.GIVEN},
    {"options": {"k": 3, "num_splits": 10}},
  ],
)
def test_what_is_compared_may_differ(values):
  assert compare.incomparable(CARD, changed(values)) == []
  assert "They can be compared." in compare.table(CARD, changed(values))


def test_a_reference_is_known_by_its_images_in_a_file_or_not():
  data = changed({"reference": {"kind": "cmjax", "digest": "77", "num": 50_000, "data": {"a": 1}}})
  file = changed({"reference": {"kind": "cmjax", "digest": "77", "sha256": "1", "file": "a.npz"}})
  assert compare.incomparable(data, file) == []
  file["reference"]["digest"] = "78"
  assert compare.incomparable(data, file) == ["reference.digest: 77 in A, 78 in B"]


def test_the_table_has_values_differences_and_what_was_compared():
  other = changed({"values.frechet": 2.0, "sampler.nfe": 2, "floor": None})
  lines = [line.split() for line in compare.table(CARD, other).splitlines()]
  assert ["FID", "2.5", "2", "0.5"] in lines and ["floor", "1.25", "-"] in lines
  assert "sampler.nfe: 1 in A, 2 in B".split() in lines
  assert "The images are the same.".split() in lines


def test_the_verdict_is_the_exit_code(tmp_path, capsys):
  a = cards.write(tmp_path, "a", CARD)
  b = cards.write(tmp_path, "b", changed({"sampler.nfe": 2}))
  c = cards.write(tmp_path, "c", changed({"rounding": "truncate"}))
  assert compare.main([str(a), str(b)]) == 0
  assert compare.main([str(a), str(c)]) == 1
  assert "rounding: round in A, truncate in B" in capsys.readouterr().out
  assert compare.main([str(a), str(tmp_path / "none.json")]) == 2
  assert "There is no card at" in capsys.readouterr().err


def test_it_runs_as_a_command(tmp_path):
  a = cards.write(tmp_path, "a", CARD)
  command = [sys.executable, "-m", "cmjax.metrics.compare", str(a), str(a)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0 and "They can be compared." in done.stdout, done.stderr


@pytest.mark.parametrize(
  "content",
  ["", "{", "[]", json.dumps(CARD), json.dumps({"format": 2} | CARD), '{"format": 1, "values": 3}'],
)
def test_what_is_no_card_says_so(tmp_path, content):
  (tmp_path / "a.json").write_text(content)
  with pytest.raises(ValueError, match="is no card of format 1"):
    cards.read(tmp_path / "a.json")
