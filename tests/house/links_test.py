"""Pages, docstrings and examples name what is there: links, pictures, files and modules."""

import ast
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HIDDEN = {"runs", "build", "dist", "node_modules"}
FOLDERS = ("cmjax", "configs", "launch", "benchmarks", "tests", "docs", "notebooks", "examples")
# What may name a file that is not there: the past, and tests of missing files.
PAST = {"CHANGELOG.md", "tests/house/links_test.py", "tests/house/commands_test.py"}

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(
  rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w/.-]*\w\.(?:py|md|sh|json|png|ipynb|yaml)\b(?![\w*{{])"
)
# A document, with a heading of it that may follow: docs/methods.md#all-methods.
DOCUMENT = re.compile(r"(?<![\w/.:*{~-])((?:\.\./)*[\w-][\w/.-]*\.md)\b(?:#([\w-]+))?")
IMPORT = re.compile(r"from (cmjax[\w.]*) import (\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)")


def files(*suffixes):
  """All files of the repository with one of these suffixes, by their path in it."""
  places = [ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in FOLDERS)]
  found = {
    path.relative_to(ROOT).as_posix(): path
    for paths in places
    for path in paths
    if path.suffix in suffixes and not HIDDEN & set(path.relative_to(ROOT).parts)
  }
  return dict(sorted(found.items()))


PAGES, TEXTS = files(".md"), files(".md", ".py", ".sh", ".yaml", ".ipynb")


def text_of(path):
  """The text of a file; of a notebook, that of its cells."""
  text = path.read_text()
  if path.suffix != ".ipynb":
    return text
  return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def anchors(text):
  """The anchors that GitHub gives to the headings of a page."""
  lines = re.sub(r"(?ms)^```.*?^```", "", text).splitlines()
  headings = [line.lstrip("#").strip().lower() for line in lines if re.match(r"#+ ", line)]
  return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def broken_links(page, text):
  """Links and pictures of a page that lead nowhere; those into the web are not followed."""
  broken = []
  for target in LINK.findall(re.sub(r"(?ms)^```.*?^```", "", text)):
    place, _, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target):
      continue
    path = page.parent / place
    if not path.exists():
      broken.append(target)
    elif anchor and anchor not in anchors(path.read_text() if place else text):
      broken.append(target)
  return broken


# What tests of misspelt names misspell.
MISSPELT = {"tests/none.py", "configs/imagenet64_sdc.py"}


def missing_files(text):
  """Files of the repository, named by their whole path, that are not there."""
  return sorted({name for name in FILE.findall(text) if not (ROOT / name).exists()} - MISSPELT)


def missing_documents(text, folder=ROOT):
  """Documents that a text names and the repository does not have, and headings that they lack.

  A path counts from the repository or from the text's own folder; a name alone may be any page's.
  """
  missing = []
  for name, anchor in DOCUMENT.findall(re.sub(r"\b[a-z]+://\S+", "", text)):
    places = [ROOT / name, folder / name, ROOT / "docs" / name]
    places += [path for path in PAGES.values() if "/" not in name and path.name == name]
    found = [path for path in places if path.is_file()]
    if not found:
      missing.append(name)
    elif anchor and not any(anchor in anchors(path.read_text()) for path in found):
      missing.append(f"{name}#{anchor}")
  return missing


def missing_modules(text):
  """What `from cmjax... import ...` asks for and cmjax does not have."""
  return sorted(
    f"{module}.{name}"
    for module, names in IMPORT.findall(text)
    for name in (part.split()[0] for part in names.split(", "))
    if not is_there(module, name)
  )


def is_there(module, name):
  path = ROOT.joinpath(*module.split("."))
  if (path / name).is_dir() or (path / f"{name}.py").is_file():
    return True
  file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
  return file.is_file() and name in names_of(file)


def names_of(file):
  """The names that a module binds at its top level."""
  names = set()
  for node in ast.parse(file.read_text()).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      names |= {alias.asname or alias.name for alias in node.names}
    else:
      names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
  return names


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_of_a_page_are_there(name):
  assert broken_links(PAGES[name], PAGES[name].read_text()) == []


@pytest.mark.parametrize("name", sorted(TEXTS.keys() - PAST))
def test_files_and_modules_that_a_text_names_are_there(name):
  text = text_of(TEXTS[name])
  # The test of imports has breaches for examples.
  modules = [] if name == "tests/house/imports_test.py" else missing_modules(text)
  assert missing_files(text) + modules == []
  assert missing_documents(text, TEXTS[name].parent) == []


@pytest.mark.parametrize(
  "text, broken",
  [
    ("[a](README.md) [b](docs/methods.md)", []),
    ("[a](docs/METHODS_.md)", ["docs/METHODS_.md"]),
    ("![p](docs/none.png)", ["docs/none.png"]),
    ("[w](https://example.org/none.md)", []),
    ("# One heading: here\n[a](#one-heading-here) [b](#another)", ["#another"]),
    ("```\n[a](none.md)\n```", []),
  ],
)
def test_a_broken_link_is_found(text, broken):
  assert broken_links(ROOT / "PAGE.md", text) == broken


@pytest.mark.parametrize(
  "text, missing",
  [
    ("see docs/methods.md and docs/methods.md#all-methods, or CONTRIBUTING.md", []),
    ("one step per segment (scm.md, 8.3)", ["scm.md"]),
    ("docs/gone.md says how", ["docs/gone.md"]),
    ("docs/methods.md#none", ["docs/methods.md#none"]),
    ("https://example.org/gone.md", []),
    ('page.startswith(".md") or f"{name}.md"', []),
  ],
)
def test_a_document_that_is_not_there_is_found(text, missing):
  assert missing_documents(text) == missing


def test_a_file_and_a_module_that_are_not_there_are_found():
  assert missing_files("see cmjax/none.py, cmjax/types.py and configs/none_*.py") == [
    "cmjax/none.py"
  ]
  text = "from cmjax import types, none\n  from cmjax.types import Network, Nothing\n"
  text += "from cmjax.none import it\n"
  assert missing_modules(text) == ["cmjax.none", "cmjax.none.it", "cmjax.types.Nothing"]
