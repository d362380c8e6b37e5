"""What the outside sees agrees with what the project is: one version, one address, one CI."""

import ast
import datetime
import fnmatch
import json
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

import cmjax

ROOT = pathlib.Path(__file__).parents[2]
GITHUB = ROOT / ".github"


def constants(path):
  """The constants of a Python file, read without running it."""
  values = {}
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      try:
        values[node.targets[0].id] = ast.literal_eval(node.value)
      except ValueError:
        continue
  return values


SETUP = constants(ROOT / "setup.py")


def commands_of(text):
  """The commands of a shell script, one by one; what only prepares the shell is none."""
  lines = (line.strip() for line in text.splitlines())
  return [line for line in lines if line and not re.match(r"#|set |cd ", line)]


def one_by_one(command):
  """`make a b` as `make a` and `make b`."""
  program, *words = command.split()
  return [f"make {word}" for word in words] if program == "make" else [command]


def jobs_of(workflow):
  """(name, commands) of each job of the matrix."""
  rows = workflow["jobs"]["part"]["strategy"]["matrix"]["include"]
  return [
    (row["part"], [c for line in commands_of(row["commands"]) for c in one_by_one(line)])
    for row in rows
  ]


def test_the_workflow_runs_all_that_ci_runs_and_no_more():
  ci = {c for line in commands_of((ROOT / ".ci" / "run").read_text()) for c in one_by_one(line)}
  workflow = yaml.safe_load((GITHUB / "workflows" / "checks.yml").read_text())
  jobs = jobs_of(workflow)
  assert len(jobs) > 3 and "make slow" in ci
  assert {command for _, commands in jobs for command in commands} == ci
  # A job has a machine of its own: what its commands use has to be made there.
  for name, commands in jobs:
    uses_venv = any(".venv" in command for command in commands)
    assert not uses_venv or commands[0] == "make venv", name
  assert workflow["permissions"] == {"contents": "read"}
  steps = workflow["jobs"]["part"]["steps"]
  assert not any("upload" in step.get("uses", "") for step in steps)
  assert steps[-1]["run"] == "${{ matrix.commands }}"


def test_make_knows_what_others_ask_of_it():
  targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  asked = {}
  places = [".ci/run", ".pre-commit-config.yaml", "CONTRIBUTING.md", "launch/install.sh"]
  places += [str(path.relative_to(ROOT)) for path in GITHUB.rglob("*.*")]
  for place in places:
    for words in re.findall(r"(?:^|[` :])make ((?:[a-z]+\b ?)+)", (ROOT / place).read_text()):
      asked |= dict.fromkeys(words.split(), place)
  prose = {"makes", "that", "it", "sure"}
  assert {"lint", "slow", "format", "lock"} <= asked.keys()
  assert {word: place for word, place in asked.items() if word not in targets | prose} == {}


SCHEMAS = {
  ".github/workflows/*.yml": "github-workflows",
  ".github/ISSUE_TEMPLATE/[!c]*.yml": "github-issue-forms",
  ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
  "CITATION.cff": "citation-file-format",
}


def schema_errors(schema, *paths):
  pytest.importorskip("check_jsonschema")
  done = subprocess.run(
    [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *paths],
    capture_output=True,
    text=True,
  )
  return done.stdout if done.returncode else ""


@pytest.mark.parametrize("pattern", SCHEMAS)
def test_github_and_citation_files_have_their_schema(pattern):
  paths = sorted(ROOT.glob(pattern))
  assert paths and schema_errors(SCHEMAS[pattern], *paths) == ""


def test_a_file_that_breaks_its_schema_is_found(tmp_path):
  text = (ROOT / "CITATION.cff").read_text()
  (tmp_path / "CITATION.cff").write_text(text.replace("date-released: 20", "date-released: x"))
  assert "date-released" in schema_errors("citation-file-format", tmp_path / "CITATION.cff")


def test_the_version_and_its_date_are_the_same_everywhere():
  changelog = (ROOT / "CHANGELOG.md").read_text()
  releases = re.findall(r"^## \[([\d.]+)\] - (\S+)$", changelog, re.MULTILINE)
  assert len(releases) == changelog.count("\n## ") - changelog.count("\n## [Unreleased]")
  dates = [datetime.date.fromisoformat(date) for _, date in releases]
  assert dates == sorted(dates, reverse=True)
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  version, date = releases[0]
  assert cmjax.__version__ == version == citation["version"]
  assert citation["date-released"].isoformat() == date


# Hosts under which the repository has a page.
ADDRESS = re.compile(
  r"(github\.com|raw\.githubusercontent\.com|colab\.research\.google\.com/github|github\.io)"
  r"/([\w-]+/cmjax)(?![\w-])"
)
PLACES = ("*.*", ".github/**/*.*", "docs/**/*.md", "notebooks/*.*", "launch/*", "cmjax/**/*.py")


def test_the_repository_has_one_address():
  files = [path for place in PLACES for path in ROOT.glob(place) if path.is_file()]
  said = {}
  for path in files:
    for _, name in ADDRESS.findall(path.read_text(errors="replace")):
      said.setdefault(name, set()).add(str(path.relative_to(ROOT)))
  name = SETUP["URL"].removeprefix("https://github.com/")
  others = {address: sorted(paths) for address, paths in said.items() if address != name}
  assert others == {}, f"setup.py says {name}; CONTRIBUTING.md has the command that changes all"
  assert {"CITATION.cff", "setup.py"} <= said[name]


def test_the_container_gets_what_an_installation_reads():
  patterns = [
    line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"
  ]
  dockerfile = (ROOT / "Dockerfile").read_text()
  (constraints,) = re.findall(r"^RUN pip .* -c (\S+) -e", dockerfile, re.MULTILINE)
  needed = [constraints, "setup.py", "pyproject.toml", "README.md", "LICENSE", "cmjax", "configs"]
  for name in needed:
    assert (ROOT / name).exists()
    parts = [name, *map(str, pathlib.Path(name).parents)][:-1]
    assert not any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns), name
  for extras in re.findall(r"EXTRAS=([\w,]+)", dockerfile):
    assert set(extras.split(",")) <= SETUP["EXTRAS"].keys()


TEXTS = ("*.*", "cmjax/**/*.py", "configs/**/*.py", "tests/**/*.py", ".github/**/*.*", "launch/*.*")
BINARY = (".png", ".ico", ".npz")
# What a program printed, or a line break of Markdown.
SPACED = ("verify_test.py",)


def test_files_are_as_the_editorconfig_says():
  wrong = []
  files = {p for place in TEXTS for p in ROOT.glob(place) if p.is_file() and p.suffix not in BINARY}
  assert len(files) > 300
  for path in files:
    data = path.read_bytes()
    bad = {
      "no end of the last line": data and not data.endswith(b"\n"),
      "CR": b"\r\n" in data,
      "a tab": re.search(rb"^\t", data, re.MULTILINE) is not None,
      "space at the end": path.suffix != ".md"
      and path.name not in SPACED
      and re.search(rb"[ \t]$", data, re.MULTILINE),
    }
    wrong += [f"{path.relative_to(ROOT)}: {name}" for name, found in bad.items() if found]
  assert wrong == []


def test_the_notebook_badges_lead_to_the_notebooks():
  name = SETUP["URL"].removeprefix("https://github.com/")
  link = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/"
  guide = (ROOT / "docs" / "guides" / "colab.md").read_text()
  linked = set(re.findall(re.escape(link) + r"(\w+\.ipynb)", guide))
  assert linked == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
  for path in (ROOT / "notebooks").glob("*.ipynb"):
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert link + path.name in first
