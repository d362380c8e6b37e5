"""Every command in README and docs is understood by its program, and run, or says why it is not."""

import ast
import os
import subprocess

import pytest

from helpers import documented_commands as documented
from helpers import sentences

BLOCKS = documented.blocks()
LINES = sorted({(block.page, line) for block in BLOCKS for line in block.lines})
RUN = [block for block in BLOCKS if not block.why_not]
# A page that goes on with the runs of another one comes after it.
ORDER = ("README.md", "docs/getting_started.md")


@pytest.mark.parametrize("page, line", LINES, ids=[f"{page}:{line}" for page, line in LINES])
def test_a_command_is_understood(page, line, capsys):
  try:
    documented.check(line)
  except ValueError as error:
    raise AssertionError(f"{page}: {line}: {error} {capsys.readouterr().err}") from error


@pytest.mark.parametrize("page", sentences.pages())
def test_all_code_of_a_page_stands_in_fences_of_a_language(page):
  text = sentences.pages()[page].read_text()
  assert {language for language, _, _ in documented.fences(text)} <= {
    *("bash", "python", "text", "toml", "mermaid")
  }
  outside = documented.FENCE.sub("", text).splitlines()
  assert [line for line in outside if line.startswith("    ") and line.strip()] == []


@pytest.mark.parametrize("page", sentences.pages())
def test_the_python_of_a_page_is_python(page):
  for language, code, _ in documented.fences(sentences.pages()[page].read_text()):
    if language == "python":
      ast.parse(code)


def test_commands_that_are_not_run_say_why():
  assert len(RUN) > 10
  assert all(len(block.why_not.split()) > 2 for block in BLOCKS if block.why_not)


@pytest.mark.parametrize(
  "line, word",
  [
    ("cmjax train --config=toy2d_sct --workdir=runs/x --config.optim.lrr=1", "refused"),
    ("cmjax train --config=toy2d_sct --workdir=runs/x --config.optim.lr=-1", "refused"),
    ("cmjax train --config=toy3d --workdir=runs/x", "refused"),
    ("cmjax sample --workdir=runs/toy2d --num_sample=4", "refused"),
    ("cmjax sample --workdir=runs/nobody_knows", "Of which page"),
    ("cmjax draw", "no verb"),
    ("cmjax convert a.pkl --too runs/x", "refused"),
    ("python -m cmjax.ema --workdir=runs/x --sigma_rell=0.1", "refused"),
    ("python benchmarks/cost/none.py", "there is no"),
    ("python benchmarks/cost/doctor.py --none=1", "has no --none"),
    ("launch/local.sh configs/none.py runs/x", "there is no"),
    ("make none", "make has no none"),
    ("pip install 'cmjax[none]'", "no extra none"),
    ("rm -rf runs", "is not known"),
  ],
)
def test_a_wrong_command_is_found(line, word, capsys):
  with pytest.raises(ValueError, match=word):
    documented.check(line)


def test_blocks_and_their_marks_are_found():
  text = "<!-- not run: needs a pod -->\n```bash\na \\\n  b  # c\n# d\ne\n```\n```bash\nf\n```\n"
  (_, code, before), (_, _, after) = documented.fences(text)
  assert documented.commands(code) == ("a b  # c", "e")
  assert documented.MARK.search(before)[1] == "needs a pod"
  assert not documented.MARK.search(after)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
  """Where the commands of all pages are run, one after the other."""
  return tmp_path_factory.mktemp("pages")


def _place(block):
  return ORDER.index(block.page) if block.page in ORDER else len(ORDER)


@pytest.mark.slow
@pytest.mark.xdist_group("documented commands")
@pytest.mark.parametrize(
  "block", sorted(RUN, key=_place), ids=lambda block: f"{block.page}:{block.lines[0]}"
)
def test_the_commands_of_a_page_run(block, folder):
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (documented.ROOT, TESTS)))}
  for line in block.lines:
    done = subprocess.run(
      documented.shortened(line),
      shell=True,
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}"


TESTS = documented.ROOT / "tests"


@pytest.mark.slow
def test_the_script_of_getting_started_runs():
  text = sentences.pages()["docs/getting_started.md"].read_text()
  (code,) = [code for language, code, _ in documented.fences(text) if language == "python"]
  assert code.count("range(2_000)") == 1
  names = {}
  exec(code.replace("range(2_000)", "range(3)"), names)  # our own page
  assert names["points"].shape == (4_096, 2) and bool(abs(names["points"]).max() < 100)
