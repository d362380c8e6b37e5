"""How long the sentences of a page are.

The whole table: PYTHONPATH=tests python -m helpers.sentences
The long sentences of one page: PYTHONPATH=tests python -m helpers.sentences docs/methods.md
"""

import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEDIAN, NINE_IN_TEN = 17, 32  # words
FEW = 12  # sentences: a page with fewer has no statistics of its own

# What is no prose: code, comments, and what mkdocstrings fills in.
LEFT_OUT = (r"(?ms)^[ ]*```.*?^[ ]*```[ ]*$", r"(?s)<!--.*?-->", r"(?s)<style.*?</style>")
LEFT_OUT += (r"(?m)^:::.*(?:\n[ ]+.*)*", r"(?s)\A---\n.*?\n---\n")
END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+(?=[\"'(*_`\[]*[A-Z0-9`])")
SHORT_FORMS = re.compile(r"\b(e\.g|i\.e|vs|cf|app|sec|fig|no|al|etc)\.", re.IGNORECASE)


def pages():
  """The pages that are counted: {path in the repository: file}."""
  paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md"]
  paths += sorted((ROOT / "docs").rglob("*.md"))
  return {path.relative_to(ROOT).as_posix(): path for path in paths}


def blocks(text):
  """The paragraphs and list items of a page; headings, tables and code are none."""
  for pattern in LEFT_OUT:
    text = re.sub(pattern, "\n\n", text)
  block = []
  for line in [*text.splitlines(), ""]:
    bare = line.strip().lstrip(">").strip()
    starts = re.match(r"([*+-]|\d+[.)])\s", bare) or re.match(r"(!!!|\?\?\?)", bare)
    apart = not bare or bare.startswith(("#", "|", "<", "!["))
    if (starts or apart) and block:
      yield " ".join(block)
      block = []
    if not apart:
      block.append(re.sub(r"^([*+-]|\d+[.)])\s+|^(!!!|\?\?\?)\+?\s+\w+\s*", "", bare))


def sentences(text):
  """The sentences of a page; a piece of code or a link counts as its words."""
  for block in blocks(text):
    block = re.sub(r"`[^`]*`", "Code", block)  # which may begin a sentence
    block = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", block)
    block = SHORT_FORMS.sub(r"\1", block)
    yield from (part for part in END.split(block) if words(part))


def words(sentence):
  """The number of words; signs alone are none."""
  return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def lengths(text):
  return [words(sentence) for sentence in sentences(text)]


def nine_in_ten(counts):
  """The length that nine in ten sentences keep to."""
  return sorted(counts)[max(0, -(-9 * len(counts) // 10) - 1)]


def summary(counts):
  """(sentences, median, the length that nine in ten keep to)."""
  return len(counts), statistics.median(counts), nine_in_ten(counts)


def main(arguments):
  texts = {name: path.read_text() for name, path in pages().items()}
  if arguments:
    for name in arguments:
      for sentence in sentences(texts[name]):
        if words(sentence) > 27:
          print(f"{words(sentence):3} {sentence}")  # noqa: T201
    return
  everything = []
  for name, text in texts.items():
    if counts := lengths(text):
      everything += counts
      over = statistics.median(counts) > MEDIAN or nine_in_ten(counts) > NINE_IN_TEN
      print("{:5} {:5} {:4}".format(*summary(counts)), name, "  <--" if over else "")  # noqa: T201
  print("{:5} {:5} {:4}".format(*summary(everything)), "all")  # noqa: T201


if __name__ == "__main__":
  main(sys.argv[1:])
