"""A history by parts is the same history."""

import json

import pytest

from cmjax.run import history, writer


def line(step, **values):
  return {"step": step, "time": float(step), **values}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
  monkeypatch.setattr(history, "PART_BYTES", 100)


def write(workdir, *steps, last=0, appends=False, **values):
  one = history.History(workdir, last, appends=appends)
  for step in steps:
    one.append(line(step, **values))
  one.close()


def parts(workdir):
  return sorted(path.name for path in (workdir / "metrics").iterdir())


@pytest.mark.parametrize("appends", [True, False])
def test_records_come_back_in_order_and_every_line_is_there_at_once(tmp_path, appends):
  one = history.History(tmp_path, 0, appends=appends)
  for step in range(1, 21):
    one.append(line(step, loss=step / 4))
    assert history.records(tmp_path)[-1] == line(step, loss=step / 4)
  one.close()
  assert history.records(tmp_path) == [line(step, loss=step / 4) for step in range(1, 21)]
  assert (tmp_path / "metrics").exists() != appends
  if not appends:
    assert 5 <= len(parts(tmp_path)) < 20
    sizes = [path.stat().st_size for path in (tmp_path / "metrics").iterdir()]
    assert max(sizes) < 200
  steps, losses = writer.read_metrics(tmp_path)["loss"]
  assert steps.tolist() == [*range(1, 21)] and losses[3] == 1.0


def test_a_sitting_drops_later_records_of_all_parts_and_writes_to_a_new_one(tmp_path):
  write(tmp_path, *range(1, 21))
  before = parts(tmp_path)
  write(tmp_path, 8, 9, last=7, new=1)
  found = history.records(tmp_path)
  assert [r["step"] for r in found] == [*range(1, 8), 8, 9]
  assert ["new" in r for r in found] == [False] * 7 + [True] * 2
  assert len(parts(tmp_path)) < len(before)
  last = (tmp_path / "metrics" / parts(tmp_path)[-1]).read_text().splitlines()
  assert [json.loads(text)["step"] for text in last] == [8, 9]


def test_parts_are_in_the_order_of_their_numbers_and_after_a_file_of_before(tmp_path):
  write(tmp_path, 1, 2, appends=True)
  write(tmp_path, 3, last=2)
  (tmp_path / "metrics" / "1000000.jsonl").write_text(json.dumps(line(5)) + "\n")
  (tmp_path / "metrics" / "999999.jsonl").write_text(json.dumps(line(4)) + "\n")
  (tmp_path / "metrics" / "notes.txt").write_text("not ours")
  assert [r["step"] for r in history.records(tmp_path)] == [1, 2, 3, 4, 5]
