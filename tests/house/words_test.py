"""The words of the pages: short sentences, a short README, tables that fit a screen."""

import statistics

import pytest

from helpers import sentences

PAGES = sentences.pages()
README = PAGES["README.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_sentences_of_a_page_are_short(name):
  counts = sentences.lengths(PAGES[name].read_text())
  if len(counts) >= sentences.FEW:
    assert statistics.median(counts) <= sentences.MEDIAN
    assert sentences.nine_in_ten(counts) <= sentences.NINE_IN_TEN


def test_the_sentences_of_all_pages_are_short():
  counts = [n for path in PAGES.values() for n in sentences.lengths(path.read_text())]
  number, median, nine_in_ten = sentences.summary(counts)
  assert number > 500
  assert median <= sentences.MEDIAN and nine_in_ten <= sentences.NINE_IN_TEN


def test_the_readme_is_short_and_its_tables_fit_a_screen():
  lines = README.read_text().splitlines()
  assert len(lines) <= 150
  assert [line for line in lines if line.startswith("|") and len(line) > 120] == []


@pytest.mark.parametrize(
  "text, counts",
  [
    ("One two three. Four five!", [3, 2]),
    ("One two\nthree. `cmjax train x` goes on.", [3, 3]),
    ("* An item of a list\n* and another; it is long", [5, 5]),
    ("# A heading\n\n| a | table |\n\nFour words of text.", [4]),
    ("```bash\ncmjax train\n```\nTwo words", [2]),
    ("See [the long text of a link](docs/methods.md), e.g. this.", [9]),
    ("<!-- not run: for a reason. -->\nTwo words.", [2]),
    ("It has 1.5 times that, and 2.0 too. Then more.", [8, 2]),
  ],
)
def test_words_are_counted(text, counts):
  assert sentences.lengths(text) == counts


def test_long_sentences_are_seen():
  long = " ".join(["word"] * 40) + "."
  counts = sentences.lengths("\n\n".join([long] * 3 + ["Short ones here."] * 9))
  assert sentences.summary(counts) == (12, 3, 40)
