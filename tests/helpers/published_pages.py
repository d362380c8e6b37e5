"""The settings of all pages and their variants, as they were published.

After a page was changed on purpose: PYTHONPATH=.:tests python -m helpers.published_pages
The diff of the file then shows what changed; the commit says why.
"""

import json
from pathlib import Path

from cmjax import pages

FILE = Path(__file__).parents[1] / "experiment" / "published_pages.json"


def specs():
  """Every page, and every variant that a page lists: what `pages.load` takes."""
  return [
    spec
    for name in pages.names()
    for spec in (name, *(f"{name}:{variant}" for variant in pages.variants(name)))
  ]


def line(spec):
  """All settings of a page in one line, tuples as lists."""
  return json.dumps(pages.load(spec).to_dict(), sort_keys=True)


def read():
  """{spec: line} of the file."""
  stored = json.loads(FILE.read_text())
  return {spec: json.dumps(settings, sort_keys=True) for spec, settings in stored.items()}


def write():
  rows = [f"{json.dumps(spec)}: {line(spec)}" for spec in sorted(specs())]
  FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
  write()
