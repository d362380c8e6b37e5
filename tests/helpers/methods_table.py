"""The list of methods of docs/methods.md, made of `METHODS` and of the pages.

After a method or a page of digits was added: PYTHONPATH=.:tests python -m helpers.methods_table
"""

from pathlib import Path

from cmjax import experiment, pages

FILE = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- methods -->\n", "<!-- /methods -->\n"
PAGES = "digits_"


def table() -> str:
  """A row for each row of `METHODS`, with the pages that take it."""
  taken = {name: [] for name in experiment.METHODS}
  for page in pages.names():
    if page.startswith(PAGES):
      taken[pages.load(page).loss.name].append(f"`{page.removeprefix(PAGES)}`")
  lines = ["| method | `loss.name` | pages: `*_` | papers |", "|---|---|---|---|"]
  for name, row in experiment.METHODS.items():
    lines.append(f"| {row.title} | `{name}` | {', '.join(taken[name])} | {row.paper} |")
  return "\n".join(lines) + "\n"


def write() -> None:
  """Puts the table between its marks."""
  before, _, rest = FILE.read_text().partition(BEGIN)
  FILE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
  write()
