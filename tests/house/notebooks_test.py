"""The notebooks as they are committed: complete, clean, runnable anywhere."""

import ast
import json
import os
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NOTEBOOKS = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# Paths of somebody's machine; what follows a host in a URL does not count.
MACHINE_PATH = re.compile(r"(?<![\w./:-])/(home|Users|tmp|root|work|usr|opt|content|mnt)/")


def cells(path, kind):
  notebook = json.loads(path.read_text(encoding="utf-8"))
  return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
  return "".join(cell["source"])


def outputs(path):
  return [output for cell in cells(path, "code") for output in cell["outputs"]]


def without_magics(code):
  """Lines that only IPython reads, as `pass` (which an `if` can hold)."""
  return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)


def breaches(path):
  """What is wrong with a notebook as a file, as sentences."""
  badge = f"https://colab.research.google.com/github/cmjax/cmjax/blob/main/notebooks/{path.name}"
  code = [source(cell) for cell in cells(path, "code")]
  if badge not in source(cells(path, "markdown")[0]):
    yield "no Colab badge with its own address in the first cell"
  if code[0] != (FOLDER / "install_cell.py").read_text(encoding="utf-8").rstrip("\n"):
    yield "the first code cell is not the install cell"
  counts = [cell["execution_count"] for cell in cells(path, "code")]
  if counts != list(range(1, len(counts) + 1)):
    yield f"not executed from top to bottom: {counts}"
  kinds = {output["output_type"] for output in outputs(path)}
  if "error" in kinds:
    yield "an error among the outputs"
  if "stream" in kinds and any(output.get("name") == "stderr" for output in outputs(path)):
    yield "a warning among the outputs"
  if not any("image/png" in output.get("data", {}) for output in outputs(path)):
    yield "no figure"
  if found := MACHINE_PATH.search(path.read_text(encoding="utf-8")):
    yield f"a path of one machine: {found[0]}"
  if path.stat().st_size >= 1_000_000:
    yield f"{path.stat().st_size} bytes: lower the figures' dpi"
  for text in code:
    for node in ast.walk(ast.parse(without_magics(text))):
      if isinstance(node, ast.ImportFrom | ast.Import):
        names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if any(part.startswith("_") for name in names for part in name.split(".") if part):
          yield f"a private import: {names}"


def test_there_are_five_notebooks():
  assert [path.name[:2] for path in PATHS] == ["01", "02", "03", "04", "05"]


@NOTEBOOKS
def test_notebook_is_complete_and_clean(path):
  assert list(breaches(path)) == []


@pytest.mark.parametrize(
  ("old", "new", "word"),
  [
    ("/blob/main/notebooks/0", "/blob/main/notebooks/9", "badge"),
    ("RESTART NEEDED", "RESTART", "install cell"),
    ('"execution_count": 2', '"execution_count": 7', "top to bottom"),
    ('"name": "stdout"', '"name": "stderr"', "warning"),
    ("image/png", "image/none", "no figure"),
    ('"output_type": "stream"', '"output_type": "error"', "an error"),
    ("import jax\\n", "import jax # /home/someone/cmjax\\n", "one machine"),
    ("import jax\\n", "from jax import _src\\n", "private"),
  ],
)
def test_what_spoils_a_notebook_is_found(tmp_path, old, new, word):
  text = PATHS[0].read_text(encoding="utf-8")
  assert old in text
  (tmp_path / PATHS[0].name).write_text(text.replace(old, new), encoding="utf-8")
  assert any(word in breach for breach in breaches(tmp_path / PATHS[0].name))


# What is executed is the same with fewer steps and points. What stands left is in the notebook.
SMALLER = {
  "01": {"n = 200_000": "n = 20_000", "(400_000,)": "(4_000,)"},
  "02": {
    "sigma_data, batch_size, total_steps = 0.5, 512, 3_000":
      "sigma_data, batch_size, total_steps = 0.5, 64, 300",
    "N = 20_000": "N = 500",
  },
  "03": {
    "TEACHER_STEPS = 300": "TEACHER_STEPS = 20",
    "STUDENT_STEPS = 150": "STUDENT_STEPS = 30",
    "draw_pictures(photos, 600)": "draw_pictures(photos, 200)",
  },
  "04": {
    "TEACHER_STEPS = 5000": "TEACHER_STEPS = 200",
    "STUDENT_STEPS = 2000": "STUDENT_STEPS = 20",
    "N = 10_000": "N = 500",
  },
  "05": {"STEPS = 800": "STEPS = 100"},
}  # fmt: skip


def made_smaller(text, number):
  for there, instead in SMALLER.get(number, {}).items():
    assert text.count(there) == 1, f"{there} is no longer in notebook {number}"
    text = text.replace(there, instead)
  return text


@pytest.mark.slow
@NOTEBOOKS
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  text = made_smaller(path.read_text(encoding="utf-8"), path.name[:2])
  notebook = nbformat.reads(text, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
  )
  # This checkout, installed or not: the install cell has nothing to do, and asks no network.
  client.execute(env=os.environ | {"PYTHONPATH": str(FOLDER.parent)})
  printed = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
  assert len(printed) == sum("data" in output for output in outputs(path))
