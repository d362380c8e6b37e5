"""Functions that can be read in one breath."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("cmjax", "configs", "launch", "benchmarks")
MOST = 60


def lengths(source):
  """(name, lines) of every function, those inside others too; a docstring does not count."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      lines = node.end_lineno - node.lineno + 1
      if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
      yield node.name, lines


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_longer_than_a_screen(folder):
  files = sorted((ROOT / folder).rglob("*.py"))
  assert files
  long = [
    f"{path.relative_to(ROOT)}: {name} has {lines} lines"
    for path in files
    for name, lines in lengths(path.read_text())
    if lines > MOST
  ]
  assert not long, long


def test_a_docstring_does_not_count_and_an_inner_function_counts_twice():
  source = 'def f(a,\n      b):\n  """One.\n\n  Two.\n  """\n  def g():\n    pass\n\n  return g\n'
  assert dict(lengths(source)) == {"f": 6, "g": 2}
