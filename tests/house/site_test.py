"""The site: it builds without a warning, and its search answers a stranger's questions."""

import collections
import html
import json
import math
import re
import shutil
import subprocess
import sys

import pytest

from helpers import questions, sentences

pytestmark = pytest.mark.slow


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory):
  """The site, as `make docs` builds it, and what the build said."""
  pytest.importorskip("zensical", reason="pip install 'cmjax[docs]'")
  folder = tmp_path_factory.mktemp("site")
  for name in ("docs", "cmjax"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(sentences.ROOT / name, folder / name, ignore=ignored)
  shutil.copy(sentences.ROOT / "mkdocs.yml", folder)
  build = (sys.executable, "-m", "zensical", "build", "--strict", "--clean")
  done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-3_000:]
  return folder / "site"


def test_every_page_is_in_the_site_and_in_its_index(site):
  index = json.loads((site / "search.json").read_text())
  found = {item["location"].partition("#")[0] for item in index["items"]}
  pages = {
    path.relative_to(sentences.ROOT / "docs").with_suffix(".html").as_posix()
    for path in (sentences.ROOT / "docs").rglob("*.md")
  }
  assert pages - found == set()
  assert all((site / page).is_file() for page in pages)


def terms(text):
  """The words of a text, as the index takes them apart."""
  plain = html.unescape(re.sub(r"<[^>]*>", " ", text)).lower()
  return re.findall(r"[a-z0-9]+", plain.replace("_", " "))


def sections(site):
  """{page: [counts of the words of each section]}; a title counts three times."""
  found = collections.defaultdict(list)
  for item in json.loads((site / "search.json").read_text())["items"]:
    page = item["location"].partition("#")[0].removesuffix(".html")
    found[page].append(collections.Counter(terms(item["text"]) + 3 * terms(item["title"])))
  return found


def ranking(asked, found):
  """The pages with a section that has all words, best first (BM25): as the site's search does.

  A word that is typed finds those that begin with it.
  """
  every = [section for page in found.values() for section in page]
  mean = sum(section.total() for section in every) / len(every)
  count = lambda section, term: sum(n for word, n in section.items() if word.startswith(term))
  rarity = {
    term: math.log(1 + len(every) / (0.5 + sum(count(section, term) > 0 for section in every)))
    for term in set(terms(asked))
  }

  def score(section):
    counts = {term: count(section, term) for term in rarity}
    length = 0.25 + 0.75 * section.total() / mean
    return all(counts.values()) * sum(
      rarity[term] * 2.2 * n / (n + 1.2 * length) for term, n in counts.items()
    )

  best = {page: max(map(score, sections)) for page, sections in found.items()}
  return sorted((page for page in best if best[page]), key=lambda page: -best[page])


def test_there_are_twenty_questions_or_more():
  assert len(questions.QUESTIONS) >= 20


def test_the_search_brings_the_page_that_answers_a_question(site):
  found = sections(site)
  missed = {
    question: (asked, ranking(asked, found)[:3])
    for question, (asked, page) in questions.QUESTIONS.items()
    if page not in ranking(asked, found)[:3]
  }
  assert missed == {}


def test_a_page_without_the_words_is_not_found():
  found = {
    "a": [collections.Counter(terms("A tangent grows. Tangents."))],
    "b": [collections.Counter()],
  }
  assert ranking("tangent grows", found) == ["a"]
  assert ranking("tangent falls", found) == []
