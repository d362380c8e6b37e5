"""JSON of others: what is sound is read, and every fault is a ValueError of one line."""

import json
import os
import pathlib
import re
import tracemalloc

import numpy as np
import pytest

from cmjax.base import json_files, limits


@pytest.fixture(autouse=True)
def _own_limits(monkeypatch):
  monkeypatch.setattr(limits, "_raised", {})


HOSTILE = {
  "lists in lists": (b"[" * 100_000 + b"]" * 100_000, "nested too deep|json_depth=64"),
  "objects in objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deep|json_depth"),
  "deep, but read": (b"[" * 65 + b"]" * 65, "each other: 65 is above the limit json_depth=64"),
  "deep in an object": (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "json_depth=64"),
  "a key twice": (b'{"a": 1, "b": 2, "a": 3}', "it has 'a' twice"),
  "a key twice inside": (b'[{"x": {"\\u0061": 1, "a": 2}}]', "it has 'a' twice"),
  "a number of 5000 digits": (b"9" * 5000, "digits"),
  "cut off": (b'{"a": [1, 2', "line 1 column"),
  "nothing": (b"", "Expecting value"),
  "no text": (b"\xff\xfe\xfa{", "Expecting value"),
  "cut in a letter": (b'"\xc3', "decode"),
  "a single quote": (b"{'a': 1}", "double quotes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_json_that_means_harm_is_one_line(name):
  data, message = HOSTILE[name]
  with pytest.raises(ValueError, match=message) as stop:
    json_files.parse(data)
  assert "\n" not in str(stop.value) and len(str(stop.value)) < 300


def test_what_is_sound_is_read(tmp_path):
  content = {"a": [1, 2.5, None, True, "é\x1b"], "b": {"c": {}}, "d": [[[]]]}
  for encoding in ("utf-8", "utf-8-sig", "utf-16"):
    assert json_files.parse(json.dumps(content).encode(encoding)) == content
  (tmp_path / "x.json").write_text(json.dumps(content))
  assert json_files.read(tmp_path / "x.json") == content
  with pytest.raises(FileNotFoundError):
    json_files.read(tmp_path / "none.json")


def test_too_many_bytes_and_values_are_refused_before_they_are_read(tmp_path):
  limits.allow({"json_bytes": 100_000, "json_values": 1_000})
  path = tmp_path / "x.json"
  path.write_bytes(b"[" + b"{}," * 30_000 + b"1]")
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match="json_values=1000. .*raise it: --limits=json_values=N"):
      json_files.read(path)
    with open(path, "ab") as file:
      file.truncate(2**33)  # of no bytes on the disk
    with pytest.raises(ValueError, match="json_bytes=100000"):
      json_files.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
  finally:
    tracemalloc.stop()
  limits.allow({"json_values": 700_000, "json_bytes": 1e9})
  assert len(json_files.parse(b"[" + b"{}," * 30_000 + b"1]")) == 30_001


def test_a_pipe_or_a_device_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "pipe", tmp_path, type(tmp_path)("/dev/zero")):
    with pytest.raises(ValueError, match="it is no regular file"):
      json_files.read(path)


def test_any_changed_byte_is_read_or_one_line():
  content = {"labels": [["a.png", 1], ["b.png", 2]], "n": {"x": -1.5e3, "y": [None, True]}}
  whole, rng = json.dumps(content).encode(), np.random.default_rng(0)
  for _ in range(300):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
      data[place] = int(rng.choice(list(b'[]{}",:0e\\\xff\0n')))
    try:
      json_files.parse(bytes(data))
    except ValueError as error:
      assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"jsonbytes": 5}, "Unknown limit 'jsonbytes'. Choose from: classes, json_bytes"),
    ({"json_bytes": 0}, "json_bytes=0 must be a whole number"),
    ({"json_bytes": 1.5}, "json_bytes=1.5 must be"),
    ({"json_bytes": float("nan")}, "json_bytes=nan must be"),
    ({"json_bytes": float("inf")}, "json_bytes=inf must be"),
  ],
)
def test_a_limit_has_a_name_and_a_number(given, message):
  with pytest.raises(ValueError, match=message):
    limits.allow(given)
  with pytest.raises(ValueError, match="'json_bytes' is not name=number, such as"):
    limits.parse("json_bytes")
  assert limits.raised() == {}


def test_the_page_of_limits_has_them_all():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "guides" / "foreign_files.md").read_text()
  listed = re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.M)
  assert {name: int(value) for name, value in listed} == limits.DEFAULTS
