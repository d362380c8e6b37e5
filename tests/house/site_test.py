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
# Words that no page is about.
COMMON = set(
  "a an and are as at be by can do does each exactly for from get give how i if in is it made many "
  "mean much my need not of on one or should some that the then this through to use used want was "
  "what when where which why will with without you your become after".split()
)


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
  """The words of a text, without their usual endings."""
  plain = html.unescape(re.sub(r"<[^>]*>", " ", text)).lower()
  found = re.findall(r"[a-z0-9]+", plain.replace("_", " "))
  return [re.sub(r"(?<=\w{3})(ing|es|ed|s)$", "", word) for word in found if word not in COMMON]


def sections(site):
  """{page: [counts of the terms of each section]}; a title counts three times."""
  found = collections.defaultdict(list)
  for item in json.loads((site / "search.json").read_text())["items"]:
    page = item["location"].partition("#")[0].removesuffix(".html")
    found[page].append(collections.Counter(terms(item["text"]) + 3 * terms(item["title"])))
  return found


def ranking(question, found):
  """The pages, best first, by their best section: BM25, as search engines count terms."""
  every = [section for page in found.values() for section in page]
  mean = sum(map(sum, (section.values() for section in every))) / len(every)
  asked = set(terms(question))
  rarity = {t: math.log(1 + len(every) / (0.5 + sum(t in s for s in every))) for t in asked}

  def score(section):
    length = 0.25 + 0.75 * sum(section.values()) / mean
    return sum(rarity[t] * 2.2 * section[t] / (section[t] + 1.2 * length) for t in asked)

  return sorted(found, key=lambda page: -max(map(score, found[page])))


def test_there_are_twenty_questions_or_more():
  assert len(questions.QUESTIONS) >= 20


def test_the_search_brings_the_page_that_answers_a_question(site):
  found = sections(site)
  missed = {
    question: ranking(question, found)[:3]
    for question, page in questions.QUESTIONS.items()
    if page not in ranking(question, found)[:3]
  }
  assert missed == {}
