"""`cmjax runs`: what it finds in a folder, what it says of each run, the page that compares."""

import json
import os
import re

import pytest

from cmjax.base import lock
from cmjax.commands import runs
from cmjax.program import run_list, run_summaries
from helpers import in_process, shown_runs

ESCAPE = "\x1b[2J\x1b]0;owned\x07\u202e"


def said(capsys, *arguments):
  """Exit code, stdout and stderr of the command."""
  return in_process.answer(capsys, lambda: runs.main(list(map(str, arguments))))


def page_of(out):
  with open(out.rpartition("The page that compares them: ")[2].strip()) as file:
    return file.read()


@pytest.fixture(name="folder")
def _folder(tmp_path):
  """A teacher and two students, the second below a folder and scored with fewer samples."""
  heun = shown_runs.config("diffusion", ("heun",))
  shown_runs.make(tmp_path / "teacher", {"heun": 0.06}, record=heun)
  shown_runs.make(tmp_path / "sct", {"one_step": 0.12, "two_step": 0.09})
  few = shown_runs.config("scd", ("one_step",), num_samples=100)
  few["optim"] = {"lr": 0.1}
  made = dict(record=few, steps=30, finished=False, of_card={"num": 100})
  shown_runs.make(tmp_path / "tried" / "scd", {"one_step": 0.3}, **made)
  (tmp_path / "empty").mkdir()
  return tmp_path


def test_each_run_is_a_line_with_its_state_what_to_watch_and_its_best_score(folder, capsys):
  code, out, err = said(capsys, folder)
  assert code == 0 and not err
  head, *lines = out.splitlines()[:4]
  cells = lambda line: re.split(r"  +", line)
  assert cells(head) == [
    *("run", "method", "data", "steps", "state", "tangent norm", "F error", "score")
  ]
  assert [cells(line) for line in lines] == [
    ["sct", "sct", "digits", "40/40", "finished", "2", "0.5", "fd 0.09 (two_step, NFE 2)"],
    ["teacher", "diffusion", "digits", "40/40", "finished", "2", "0.5", "fd 0.06 (heun, NFE 35)"],
    ["tried/scd", "scd", "digits", "30/40", "interrupted", "2", "0.5", "fd 0.3 (one_step, NFE 1)"],
  ]
  assert str(folder / "runs.html") in out


def test_the_page_has_scores_curves_pictures_and_differences_of_all_runs(folder, capsys):
  page = page_of(said(capsys, folder)[1])
  text = lambda row: re.findall(r"<t[dh][^>]*>([^<]*)<", row)
  rows = [text(row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
  assert ["fd", "teacher", "heun", "main", "35", "40", "0.06", "0.05", "1.2"] in rows
  assert ["fd", "tried/scd", "one_step", "main", "1", "30", "0.3", "0.05", "6"] in rows
  assert ["optim.lr", "-", "-", "0.1"] in rows and ["loss.name", *("&#x27;sct&#x27;",
    "&#x27;diffusion&#x27;", "&#x27;scd&#x27;")] in rows  # fmt: skip
  assert not any(row and row[0] == "sigma_data" for row in rows)  # which is the same in all
  loss = page.split("<h3>Loss</h3>")[1].split("</svg>")[0]
  assert re.findall(r"<title>([^<]*)</title>", loss) == ["sct", "teacher", "tried/scd"]
  pictures = re.findall(r'alt="([^"]+)"', page)
  assert pictures[:3] == [
    *("training images", "sct, one_step_main, step 40", "tried/scd, one_step_main, step 30")
  ]
  assert not re.search(r"https?:|<script|<link|javascript:", page)


def test_scores_that_cannot_be_compared_are_named_with_the_reason(folder, capsys):
  page = page_of(said(capsys, folder)[1])
  warnings = re.findall(r'<p class="bad">([^<]*)</p>', page)
  assert warnings == [
    "fd of tried/scd cannot be compared with that of sct (A is sct, B is tried/scd): "
    "images.num: 2000 in A, 100 in B."
  ]


def test_scores_without_cards_are_compared_by_the_configs(tmp_path):
  read = lambda name: run_summaries.read(tmp_path / name)
  for name, num in (("a", 64), ("b", 64), ("c", 128)):
    record = shown_runs.config(num_samples=num)
    record["evals"]["fd"]["every_steps"] = num  # when it is scored changes no score
    shown_runs.make(tmp_path / name, {"one_step": 1.0}, record=record)
    for card in (tmp_path / name / "cards").iterdir():
      card.unlink()
  a, b, c = map(read, "abc")
  (one,), (same,), (other,) = a.scores, b.scores, c.scores
  assert (one.card, one.nfe) == (None, 1)
  assert run_summaries.why_incomparable(a, b, one, same) == []
  assert run_summaries.why_incomparable(a, c, one, other) == ["the configs differ in evals.fd"]


def test_the_states_of_a_run(tmp_path):
  state = lambda: run_summaries.read(workdir).state
  workdir = shown_runs.make(tmp_path / "run", {"one_step": 1.0}, finished=False)
  assert state() == "interrupted"  # its last step is there, and its scores are not written
  with lock.hold(workdir):
    assert state() == "running" and lock.is_held(workdir)
  assert not lock.is_held(workdir) and state() == "interrupted"
  (workdir / "scores.json").write_text("{}")
  assert state() == "finished"
  (workdir / "config.json").write_text(json.dumps(shown_runs.config() | {"total_steps": 80}))
  assert state() == "interrupted"
  (workdir / "metrics.jsonl").unlink()
  assert state() == "no step yet"
  (workdir / "config.json").write_text(json.dumps(shown_runs.config() | {"total_steps": 0}))
  assert state() == "converted"


def test_scores_of_an_evaluation_after_the_end_take_the_place_of_older_ones(tmp_path):
  workdir = shown_runs.make(tmp_path / "run", {"one_step": 1.0})
  scores = {"fd/one_step/main": 0.25, "fd/floor": 0.5}
  (workdir / "scores.json").write_text(json.dumps(scores))
  assert [(s.value, s.floor) for s in run_summaries.read(workdir).scores] == [(0.25, 0.5)]
  record = shown_runs.config() | {"total_steps": 80}  # it goes on: what is there is of before
  (workdir / "config.json").write_text(json.dumps(record))
  assert [score.value for score in run_summaries.read(workdir).scores] == [1.0]


@pytest.mark.parametrize(
  "file, content",
  [
    ("config.json", "{"),
    ("config.json", "[]"),
    ("metrics.jsonl", '{"step": 1, "ti\n{"step": 2, "time": 5.0}\n'),
    ("scores.json", "[1]"),
    ("scores.json", '{"fd/one_step/main": "x"}'),
    ("cards/fd_one_step_main_step40.json", "{}"),
  ],
)
def test_a_damaged_run_is_named_and_ends_nothing(folder, capsys, file, content):
  (folder / "sct" / file).write_text(content)
  code, out, err = said(capsys, folder)
  assert code == 0 and not err
  (broken,) = [line for line in out.splitlines() if line.startswith("broken: ")]
  assert broken.startswith("broken: sct: ") and os.path.basename(file) in broken
  assert "teacher" in out and "What could not be read" in page_of(out)


def test_nothing_that_a_terminal_or_a_browser_obeys_reaches_it(tmp_path, capsys):
  tag = "<script>x</script>"
  record = shown_runs.config(f"{ESCAPE}{tag}")
  record["data"] = {"name": f"{ESCAPE}{tag}\nforged"}
  record["samplers"] = {f"{tag}{ESCAPE}": {"name": ESCAPE}}
  workdir = shown_runs.make(tmp_path / "<script>run", {"one_step": 0.5}, record=record)
  (tmp_path / f"named{ESCAPE}").mkdir()
  (tmp_path / f"named{ESCAPE}" / "config.json").write_text("{}")
  (workdir / "metrics.jsonl").write_text(
    json.dumps({"step": 40, "time": 1.0, f"fd/{tag}{ESCAPE}/{tag}": 1.0, tag: 1.0}) + "\n"
  )
  code, out, err = said(capsys, tmp_path)
  assert code == 0 and not err
  assert all(c.isprintable() or c == "\n" for c in out) and r"\x1b[2J" in out
  assert r"broken: named\x1b[2J" in out
  assert "forged" in out and "\nforged" not in out  # a name adds no line
  assert "<script>" not in page_of(out) and "&lt;script&gt;run" in page_of(out)


def test_of_many_runs_the_newest_have_curves_and_the_page_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(run_list, "MOST_RUNS", 2)
  for i, name in enumerate("abc"):
    workdir = shown_runs.make(tmp_path / name, {"one_step": 0.5})
    lines = (workdir / "metrics.jsonl").read_text().replace('"time": ', '"time": ' + str(i + 1))
    (workdir / "metrics.jsonl").write_text(lines)
  found = run_list.find(tmp_path)
  page = run_list.write(found).read_text()
  assert set(re.findall(r'alt="(\w), ', page)) == {"b", "c"}
  assert "of the 2 newest of 3 runs" in page and '<td class="">a</td>' in page


def test_a_folder_that_is_itself_a_run_is_one(folder):
  assert list(run_list.find(folder / "teacher").runs) == ["teacher"]


def test_without_runs_one_line_says_what_is_missing(tmp_path, capsys):
  for where, message in (("none", "There is no folder"), (".", "No run in")):
    code, out, err = said(capsys, tmp_path / where)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1


def test_the_page_goes_where_it_is_told(folder, capsys):
  code, out, _ = said(capsys, folder, f"--out={folder / 'page.html'}")
  assert code == 0 and str(folder / "page.html") in out and not (folder / "runs.html").exists()
  code, _, err = said(capsys, folder, f"--out={folder / 'none' / 'page.html'}")
  assert code == 1 and "could not be written" in err and "--out=FILE" in err
