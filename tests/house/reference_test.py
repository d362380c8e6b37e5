"""The pages of docs/reference that are made from the code say what the code says now."""

import pytest

from cmjax import pages
from helpers import reference_pages

ADVICE = "PYTHONPATH=.:tests python -m helpers.reference_pages writes them anew"


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_a_page_is_what_the_code_makes(name):
  written = (reference_pages.FOLDER / name).read_text()
  assert written == reference_pages.PAGES[name](), ADVICE


def test_every_setting_says_what_it_is():
  text = reference_pages.configuration()
  assert [line for line in text.splitlines() if line.rstrip().endswith("|  |")] == []


def leaves(section):
  """The keys of a config that are no sections."""
  for key, value in section.items():
    yield from leaves(value) if isinstance(value, dict) else (key,)


@pytest.mark.parametrize("page", ["cifar10_ict", "imagenet512_scd_vsd", "digits_scd_guided"])
def test_the_settings_of_a_page_are_in_the_reference(page):
  text = reference_pages.configuration()
  keys = set(leaves(pages.load(page).to_dict()))
  missing = {key for key in keys if f"`{key}`" not in text and f".{key}`" not in text}
  missing = {key for key in missing if f".{key}=" not in text}
  assert missing == set()


def test_a_default_and_a_range_come_from_the_code():
  rows = {row[0]: row for row in reference_pages.settings(reference_pages.optim.adam)}
  assert rows["b1"][1:3] == ("`0.9`", "number, at least 0 and below 1")
