"""Copies install_cell.py into the first code cell of the notebooks: `make notebooks` runs it."""

import pathlib
import sys

import nbformat


def copy(path: pathlib.Path, code: str) -> None:
  notebook = nbformat.read(path, as_version=4)
  cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
  cell.source = code
  cell.metadata = {"cellView": "form", "jupyter": {"source_hidden": True}}
  nbformat.write(notebook, path)


if __name__ == "__main__":
  for name in sys.argv[1:]:
    code = pathlib.Path(__file__).with_name("install_cell.py").read_text(encoding="utf-8")
    copy(pathlib.Path(name), code.rstrip("\n"))
