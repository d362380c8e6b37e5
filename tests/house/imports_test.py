"""Who may import whom: the floors and wings of the house, read off the source."""

import ast
import collections
import functools
import pathlib
import re
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "cmjax"

# From the top down. A folder is one room, and so is a file that lies in none. A room imports from
# lower floors only. What is not listed has no place yet: add it.
FLOORS = (
  "main __main__",
  "commands",
  "verify",
  "program",
  "experiment",
  "editing training",
  "losses samplers metrics data",
  "convert",
  "networks run tangent times guidance edm latents",
  "trigflow weighting distances ema oracle",
  "embeddings pages",
  "types base",
)
FLOOR = {room: i for i, rooms in enumerate(reversed(FLOORS)) for room in rooms.split()}

WINGS = {
  "base": "types base embeddings",
  "pages": "pages",
  "mathematics": "trigflow edm times distances weighting ema tangent guidance samplers oracle"
  " losses editing latents",
  "networks": "networks",
  "machinery": "run data metrics convert training",
  "program": "experiment program verify commands main __main__",
}
WING = {room: wing for wing, rooms in WINGS.items() for room in rooms.split()}
# Every wing knows base, the mathematics also itself, the program everything. And beside that:
ALSO = {
  "training": {"ema", "losses"},
  "data": {"convert", "latents"},  # images are stored as latents of a foreign autoencoder
  "metrics": {"convert"},  # references come in foreign files
  "convert": {"networks"},
}
LIBRARIES = {  # wing or room -> the only libraries it knows, beside the standard one
  "base": {
    "jax",
    "numpy",
    "jaxtyping",
    "etils",
    "fsspec",
    "aiohttp",
    "gcsfs",
    "google",
    "botocore",
    "s3fs",
  },
  "pages": {"ml_collections"},
  "mathematics": {"jax", "numpy", "jaxtyping", "scipy"},
  "networks": {"jax", "numpy", "jaxtyping", "flax", "equinox"},  # equinox if it is there
  "training": {"jax", "numpy", "jaxtyping", "flax", "optax"},
}
PRIVATE = {  # what is private in a library and is used all the same, with the reason there
  "base.meeting": {"jax._src.distributed"},
  "run.commit": {
    "orbax.checkpoint._src.path.gcs_utils",
    "orbax.checkpoint._src.serialization.tensorstore_utils",
  },
}
CONFIGURED = {"experiment", "commands", "main", "pages"}
OWNERS = {  # what is known in few places -> the rooms, or modules, that may
  "nnx": {"networks", "metrics.detectors"},
  # Where mathematics and networks meet.
  "networks": {"networks", "experiment", "convert", "program.convert"},
  "ml_collections": CONFIGURED,
  "ConfigDict": CONFIGURED,
  "absl.flags": {"main", "commands"},
  "orbax": {"run.checkpoint", "run.commit"},
  "grain": {"data"},
  # By itself Pillow opens whatever a file looks like, PostScript too.
  "Image.open": {"data.image_files"},
  "PIL.Image.open": {"data.image_files"},
  "tensorflow_datasets": {"data"},
  "tensorboardX": {"run.events"},
  "tensorflow": set(),
  "torch": set(),
  **{
    f"jax.{name}": {"base.sharding", "base.meeting", "program.score_files", "run.writer", "main"}
    for name in ("devices", "local_devices", "process_index", "process_count")
  },
}
# Clusters tell by variables who the other processes are; all else is a flag, or in the config.
OWNERS["os.environ"] = {"base.cluster"}
BANNED = {  # anywhere
  "os.getenv": "environment variables are for launch scripts",
  "os.putenv": "environment variables are for launch scripts",
  "pickle.load": "untrusted bytes are never executed",
  "pickle.loads": "untrusted bytes are never executed",
  "dill": "untrusted bytes are never executed",
  "cloudpickle": "untrusted bytes are never executed",
  "joblib": "untrusted bytes are never executed",
  "eval": "untrusted bytes are never executed",
  "exec": "untrusted bytes are never executed",
  "jax.pmap": "jit over a mesh is the one way",
}


@functools.cache
def imported_by(source):
  """Everything that a source imports."""
  return frozenset(imports(ast.parse(source)))


def modules(package):
  """Name -> path: `losses.continuous` of cmjax/losses/continuous.py, `losses` of its __init__."""

  def name(path):
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")

  return {name(path): path for path in sorted(package.rglob("*.py"))}


MODULES = modules(PACKAGE)


def room(name):
  """Of a module, or of anything in it; "" of cmjax itself."""
  return name.split(".")[0]


def is_door(name):
  """A `__main__`, which calls a command by an older name and is imported by nobody."""
  return name.endswith(".__main__")


def floor(name):
  if name and room(name) not in FLOOR:
    raise AssertionError(f"cmjax.{name} has no floor: give it one in tests/house/imports_test.py.")
  return FLOOR[room(name)] if name else 0


def dotted(node):
  """`a.b.c` of an expression that is just that, else None."""
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    value = dotted(node.value)
    return value and f"{value}.{node.attr}"
  return None


def imports(tree):
  """Everything imported, as full names: `from a.b import c` is a.b.c."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = "." * node.level + (node.module or "")
      yield from (f"{base}.{alias.name}" for alias in node.names)


def breaches(name, source):
  """What the module `name` with this source may not do, as sentences."""
  tree = ast.parse(source)
  imported = set(imports(tree))
  return [
    *import_breaches(name, imported),
    *use_breaches(name, imported | {full for node in ast.walk(tree) if (full := dotted(node))}),
    *pickle_breaches(tree),
  ]


def import_breaches(name, imported):
  floor(name)  # it has one
  for full in sorted(imported):
    top, _, rest = full.partition(".")
    parts = full.split(".")
    if not top:
      yield f"relative import {full}: write it out"
    elif parts[-1] == "*":
      yield f"star import of {full}"
    elif full in PRIVATE.get(name, ()):
      yield from library_breaches(name, full)
    elif any(part.startswith("_") for part in parts if part != "__future__"):
      yield f"private import {full}"
    elif top != "cmjax":
      yield from library_breaches(name, full)
    elif is_door(name):
      if room(rest) != "commands":
        yield f"{full}: a door leads to a command"
    elif room(rest) != room(name):
      yield from room_breaches(name, rest)


def library_breaches(name, full):
  for place in (WING.get(room(name), "base"), room(name)):
    allowed = LIBRARIES.get(place)
    if allowed is not None and full.split(".")[0] not in allowed | sys.stdlib_module_names:
      yield f"{full} in {place}, which knows only {', '.join(sorted(allowed))}"


def room_breaches(name, other):
  """Of an import from another room; of cmjax itself, which is its version, nothing."""
  if not other:
    return
  if floor(other) >= floor(name):
    yield f"cmjax.{other} is not on a lower floor"
  wing, other_wing = WING.get(room(name), "base"), WING[room(other)]
  if wing == "program" or room(other) in ALSO.get(room(name), ()):
    return
  if wing == other_wing == "machinery":
    yield f"cmjax.{other}: machinery rooms do not import each other"
  elif other_wing != "base" and not wing == other_wing == "mathematics":
    yield f"cmjax.{other}: {wing} may not import {other_wing}"


def use_breaches(name, used):
  for full in sorted(used):
    short = full.removeprefix("cmjax.")
    for thing, owners in OWNERS.items():
      known = _starts(short, thing) or thing in {"nnx", "ConfigDict"} & set(full.split("."))
      if known and not any(_starts(name, owner) for owner in owners):
        yield f"{full}: only in {', '.join(sorted(owners)) or 'tests'}"
    for thing, reason in BANNED.items():
      if _starts(full, thing):
        yield f"{full}: {reason}"


def pickle_breaches(tree):
  for node in ast.walk(tree):
    for keyword in node.keywords if isinstance(node, ast.Call) else ():
      if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is not False:
        yield "allow_pickle: untrusted bytes are never executed"


def _starts(full, thing):
  return full == thing or full.startswith(thing + ".")


def file_arrows(package):
  """(module, module that it imports) of the files of a package, but for its doors."""
  names = modules(package)

  def module(full):
    parts = full.split(".")[1:]
    lengths = range(len(parts), 0, -1)
    return next((n for k in lengths if (n := ".".join(parts[:k])) in names), "")

  return {
    (name, module(full))
    for name, path in names.items()
    if not is_door(name)
    for full in imported_by(path.read_text())
    if _starts(full, "cmjax")
  }


def in_circles(arrows):
  """What is in a circle: a way leads from it back to it."""

  ahead = collections.defaultdict(set)
  for a, b in arrows:
    ahead[a].add(b)

  def reached(start):
    found, todo = set(), [start]
    while todo:
      new = ahead.get(todo.pop(), set()) - found
      found |= new
      todo += new
    return found

  return sorted(place for place in ahead if place in reached(place))


def rooms_arrows_circles(package):
  """The rooms of a package, the arrows between them, and the rooms that are in a circle."""
  rooms = {room(name) for name in modules(package) if name}
  arrows = {(room(a), room(b)) for a, b in file_arrows(package) if a and room(a) != room(b)}
  return rooms, arrows, in_circles(arrows)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_and_each_thing_is_known_in_its_place(name):
  found = breaches(name, MODULES[name].read_text())
  assert not found, found


@pytest.mark.parametrize(
  "name, source, word",
  [
    ("trigflow", "from cmjax import tangent", "lower floor"),
    ("trigflow", "from cmjax.times import proposal", "lower floor"),
    ("types", "import cmjax.trigflow", "lower floor"),
    ("experiment", "def f():\n  from cmjax.program import train", "lower floor"),
    ("program.train", "from cmjax import main", "lower floor"),
    ("program.averages", "from cmjax.commands import ema", "lower floor"),
    ("program.doctor", "from cmjax import verify", "lower floor"),
    ("ema.posthoc", "from cmjax.program import averages", "lower floor"),
    ("convert.names", "from cmjax.metrics import references", "lower floor"),
    ("base.npz", "from cmjax import types", "lower floor"),
    ("embeddings", "from cmjax import pages", "lower floor"),
    ("times", "from cmjax import edm", "lower floor"),
    ("losses.discrete", "from cmjax.networks import mlp", "may not import networks"),
    ("networks.edm2", "from cmjax import trigflow", "may not import mathematics"),
    ("metrics.evaluators", "from cmjax import samplers", "may not import mathematics"),
    ("metrics.evaluators", "from cmjax import latents", "may not import mathematics"),
    ("training.step", "from cmjax import networks", "may not import networks"),
    ("training.optim", "from cmjax import tangent", "may not import mathematics"),
    ("losses.discrete", "from cmjax.run.writer import Writer", "may not import machinery"),
    ("losses.discrete", "from cmjax.training.optim import chain", "may not import machinery"),
    ("experiment", "from cmjax import pages\nfrom cmjax.commands import ema", "lower floor"),
    ("networks.mlp", "from cmjax import pages", "may not import pages"),
    ("metrics.evaluators", "from cmjax.data import sources", "do not import each other"),
    ("data.sources", "from cmjax.run import checkpoint", "do not import each other"),
    ("tangent", "import optax", "knows only"),
    ("networks.mlp", "import clu.metrics", "knows only"),
    ("base.sharding", "import flax", "knows only"),
    ("training.step", "import clu.metrics", "knows only"),
    ("pages", "import jax", "knows only"),
    ("tangent", "from jax._src import core", "private"),
    ("base.sharding", "from jax._src import distributed", "private"),
    ("run.checkpoint", "from orbax.checkpoint._src.path import gcs_utils", "private"),
    ("tangent", "from cmjax.trigflow import *", "star"),
    ("tangent", "from . import trigflow", "relative"),
    ("commands.ema", "from cmjax.ema import __main__", "private"),
    ("main", "import cmjax.convert.__main__", "private"),
    ("ema.__main__", "from cmjax.program import averages", "leads to a command"),
    ("training.step", "from flax import nnx", "only in metrics.detectors, networks"),
    ("experiment", "import flax\nx = flax.nnx.Param", "only in metrics.detectors, networks"),
    ("metrics.frechet", "from flax import nnx", "only in metrics.detectors, networks"),
    ("program.train", "from cmjax import networks", "only in convert, experiment"),
    ("training.optim", "from ml_collections import ConfigDict", "only in commands, experiment"),
    ("training.step", "def f(config: 'x', c: mlc.ConfigDict): pass", "only in commands, exp"),
    ("program.train", "from ml_collections import ConfigDict", "only in commands, experiment"),
    ("verify", "def f(c: mlc.ConfigDict): pass", "only in commands, experiment"),
    ("experiment", "from absl import flags", "only in commands, main"),
    ("program.train", "import orbax.checkpoint as ocp", "only in run.checkpoint"),
    ("run.snapshots", "import orbax.checkpoint as ocp", "only in run.checkpoint"),
    ("run.page", "import tensorboardX", "only in run.events"),
    (
      "data.pipeline",
      "import jax\nn = jax.process_count()",
      "only in base.meeting, base.sharding, main",
    ),
    ("experiment", "from jax import devices", "only in base.meeting, base.sharding, main"),
    ("run.writer", "from PIL import Image\nImage.open('a.png')", "only in data.image_files"),
    ("data.sources", "import PIL.Image\nPIL.Image.open('a.png')", "only in data.image_files"),
    ("convert.edm", "import torch", "only in tests"),
    ("main", "import os\nx = os.environ['A']", "only in base.cluster"),
    ("main", "from os import environ", "only in base.cluster"),
    ("main", "import os\nx = os.getenv('A')", "launch scripts"),
    ("convert.edm", "import pickle\npickle.load(f)", "never executed"),
    ("convert.edm", "from pickle import loads", "never executed"),
    ("experiment", "f = eval('1')", "never executed"),
    ("data.sources", "import numpy as np\nnp.load(f, allow_pickle=True)", "never executed"),
    ("program.train", "import jax\nf = jax.pmap(g)", "one way"),
  ],
)
def test_a_breach_is_found(name, source, word):
  assert any(word in breach for breach in breaches(name, source)), breaches(name, source)


@pytest.mark.parametrize(
  "name, source",
  [
    ("losses.discrete", "import math\nfrom cmjax import tangent\nfrom cmjax.types import Network"),
    ("losses.discrete", "from cmjax.losses.continuous import data_velocity"),
    ("networks.mlp", "from flax import nnx\nfrom cmjax import embeddings"),
    ("networks.mlp", "from cmjax.networks import layers"),
    ("metrics.detectors.inception", "from flax import nnx"),
    ("metrics.references", "from cmjax.convert import pickles"),
    ("run.events", "import tensorboardX\nfrom cmjax.run.page import page"),
    ("experiment", "from cmjax import networks, trigflow\nfrom ml_collections import ConfigDict"),
    ("pages", "import ml_collections as mlc\nc = mlc.ConfigDict()"),
    ("ema.__main__", "import sys\nfrom cmjax.commands import ema"),
    ("program.plan", "import jax\nn = topology.devices\ns = jax.eval_shape(f)"),
    ("data.sources", "import numpy as np\nnp.load(f, allow_pickle=False)"),
    ("convert.edm", "import pickle\nclass Reader(pickle.Unpickler): pass"),
  ],
)
def test_what_is_allowed_is_no_breach(name, source):
  assert not breaches(name, source)


def test_a_module_without_a_floor_is_named():
  with pytest.raises(AssertionError, match="cmjax.nowhere has no floor"):
    breaches("nowhere", "import jax")


def test_every_room_has_one_floor_and_one_wing_and_is_there():
  rooms = rooms_arrows_circles(PACKAGE)[0]
  assert set(FLOOR) == set(WING) == rooms
  for table in (FLOORS, WINGS.values()):
    listed = " ".join(table).split()
    assert len(listed) == len(set(listed))


def test_no_room_and_no_file_is_in_a_circle():
  assert rooms_arrows_circles(PACKAGE)[2] == []
  assert in_circles(file_arrows(PACKAGE)) == []


@pytest.mark.parametrize(
  "name, higher",
  [("networks.layers", "networks.mlp"), ("metrics.frechet", "metrics.evaluators")],
)
def test_an_import_against_the_order_of_its_room_makes_a_circle(name, higher):
  assert {name, higher} <= set(in_circles(file_arrows(PACKAGE) | {(name, higher)}))


def test_a_circle_is_found_of_rooms_and_of_files(tmp_path):
  sources = {
    "top.py": "from cmjax import left",
    "left/__init__.py": "",
    "left/a.py": "from cmjax.right.b import thing",
    "left/__main__.py": "from cmjax import top",
    "right/b.py": "def f():\n  from cmjax import left",
    "right/c.py": "from cmjax.right import d",
    "right/d.py": "import cmjax.right.c",
  }
  for name, source in sources.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(source)
  rooms, arrows, circles = rooms_arrows_circles(tmp_path)
  assert rooms == {"top", "left", "right"} and circles == ["left", "right"]
  assert arrows == {("top", "left"), ("left", "right"), ("right", "left")}
  assert in_circles(file_arrows(tmp_path)) == ["right.c", "right.d"]


def test_the_picture_of_the_architecture_shows_these_floors():
  text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
  drawn = re.findall(r'\bf\d+\["(.+?)"\]', text)
  assert [floor.replace("·", " ").split() for floor in drawn] == [f.split() for f in FLOORS]


TESTS = {
  path.relative_to(PACKAGE.parent).as_posix(): path
  for path in sorted((PACKAGE.parent / "tests").rglob("*.py"))
}


def imported_tests(source):
  """What a file of tests imports of another one; what they share is in tests/helpers."""
  folders = {name.split("/")[1] for name in TESTS if name.count("/") > 1} - {"helpers"}
  for full in sorted(imported_by(source)):
    parts = full.split(".")
    here = parts[0] in folders | {"tests", "conftest", ""}
    if here or any(part.endswith("_test") for part in parts):
      yield full


@pytest.mark.parametrize("name", TESTS)
def test_no_test_imports_another(name):
  assert list(imported_tests(TESTS[name].read_text())) == []


@pytest.mark.parametrize(
  "source, found",
  [
    ("from helpers import tiny\nfrom cmjax.data import sources\nimport numpy.testing", []),
    ("from program.train_test import config", ["program.train_test.config"]),
    ("import tests.program.train_test", ["tests.program.train_test"]),
    ("def f():\n  import train_test", ["train_test"]),
    ("from . import train_test", ["..train_test"]),
    ("from house import links", ["house.links"]),
  ],
)
def test_an_import_of_another_test_is_found(source, found):
  assert list(imported_tests(source)) == found
