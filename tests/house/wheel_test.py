"""What an installation is: a wheel that works alone, and a clone that works from anywhere."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
BUILT_FROM = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")


def run(*command, cwd, **environment):
  """What a program says; nothing but its installation tells it where cmjax is."""
  inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
  done = subprocess.run(
    [str(word) for word in command],
    cwd=cwd,
    env=inherited | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4_000:]
  return done.stdout


def clone(folder):
  """The repository as far as an installation reads it, without what earlier builds left in ours."""
  for name in ("cmjax", "configs"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in BUILT_FROM:
    shutil.copy(ROOT / name, folder)
  return folder


def environment(folder):
  """The Python of a new environment, which sees the libraries of ours after its own."""
  venv.create(folder, with_pip=False, symlinks=True)
  (site,) = folder.glob("lib/python*/site-packages")
  libraries = [path for path in sys.path if path.endswith("-packages")]
  (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
  return folder / "bin" / "python"


def install(python, *what, cwd):
  # Nothing is downloaded: the libraries are there, and setuptools is one of them.
  options = ("--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed", "--no-index")
  run(python, "-m", "pip", "--disable-pip-version-check", "install", *options, *what, cwd=cwd)


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory):
  """The Python of an environment with cmjax installed from a wheel."""
  tmp = tmp_path_factory.mktemp("wheel")
  (tmp / "clone").mkdir()
  options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp)
  run(sys.executable, "-m", "pip", "wheel", *options, clone(tmp / "clone"), cwd=tmp)
  (wheel,) = tmp.glob("cmjax-*.whl")
  python = environment(tmp / "venv")
  install(python, wheel, cwd=tmp)
  shutil.rmtree(tmp / "clone")
  return python


@pytest.fixture(name="package", scope="module")
def _package(installed, tmp_path_factory):
  """Where that Python finds cmjax, and what the installation says of itself."""
  program = """
import importlib.metadata, json, cmjax
own = importlib.metadata.distribution("cmjax")
scripts = own.entry_points.select(group="console_scripts")
print(json.dumps({
  "path": cmjax.__path__[0], "version": cmjax.__version__, "metadata": own.metadata.json,
  "scripts": {script.name: script.value for script in scripts}, "files": [*map(str, own.files)],
}))
"""
  return json.loads(run(installed, "-c", program, cwd=tmp_path_factory.mktemp("empty")))


def test_a_wheel_trains_from_an_empty_folder(installed, tmp_path):
  cmjax = installed.parent / "cmjax"
  run(cmjax, "train", "--config=toy2d_sct:smoke", "--workdir=made", cwd=tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["made"]
  assert (tmp_path / "made" / "report.html").stat().st_size > 10_000
  assert list((tmp_path / "made" / "checkpoints").glob("[0-9]*"))


def test_a_wheel_draws_from_a_model_that_came_with_it(installed, tmp_path):
  for model in ("digits", "fashion_mnist"):
    said = run(installed.parent / "cmjax", "sample", model, cwd=tmp_path)
    picture, arrays = map(pathlib.Path, said.split())
    assert picture == tmp_path / "samples" / model / "two_step_seed0.png"
    assert picture.stat().st_size > 1_000 and arrays.stat().st_size > 1_000


def test_a_wheel_has_every_page_and_model_and_its_types_and_no_more(installed, package):
  assert pathlib.Path(package["path"]).is_relative_to(installed.parents[1])
  files = {name for name in package["files"] if not name.endswith(".pyc")}
  assert "cmjax/py.typed" in files
  pages = {f"cmjax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
  assert pages and {name for name in files if name.startswith("cmjax/configs/")} == pages
  shipped = {f"cmjax/models/{path.name}" for path in (ROOT / "cmjax" / "models").iterdir()}
  assert len(shipped) == 4 and {n for n in files if n.startswith("cmjax/models/")} == shipped
  tops = {pathlib.Path(name).parts[0] for name in files}
  assert tops == {"cmjax", f"cmjax-{package['version']}.dist-info", ".."}  # ..: bin/cmjax
  assert package["scripts"] == {"cmjax": "cmjax.commands.cli:main"}


def test_a_wheel_introduces_itself(package):
  metadata = package["metadata"]
  assert metadata["version"] == package["version"]
  assert metadata["license_expression"] == "Apache-2.0"
  # As on the front page of the repository, but for links that lead nowhere from elsewhere.
  lines = (ROOT / "README.md").read_text().splitlines()
  assert metadata["description"].splitlines()[0] == lines[0]
  assert len(metadata["description"].splitlines()) == len(lines)
  assert "](docs/" not in metadata["description"]


def test_quickstart_runs_from_a_wheel(installed, tmp_path):
  said = run(installed, "-m", "cmjax.commands.quickstart", "--help", cwd=tmp_path)
  assert "--workdir" in said


@pytest.fixture(name="working", scope="module")
def _working(tmp_path_factory):
  """(folder above a clone that is named cmjax, Python where that is installed to work on)."""
  tmp = tmp_path_factory.mktemp("working")
  for name in ("runs", "data"):  # a run or two later
    (tmp / "cmjax" / name).mkdir(parents=True)
  python = environment(tmp / "venv")
  install(python, "-e", clone(tmp / "cmjax"), cwd=tmp)
  return tmp, python


@pytest.mark.parametrize("start", [".", "cmjax", "cmjax/runs"])
def test_a_clone_installed_to_work_on_is_found_from(start, working):
  # From the folder above, the clone itself looks like a package cmjax: a folder of that name.
  folder, python = working
  program = (
    "from importlib.util import find_spec as f; print(f('cmjax.program.stored_runs').origin)"
  )
  path = run(python, "-c", program, cwd=folder / start).strip()
  assert pathlib.Path(path) == folder / "cmjax" / "cmjax" / "program" / "stored_runs.py"
