"""Who may import whom: the floors and wings of the house, read off the source."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "cmjax"

# Module or folder -> (floor, wing). The longest name that fits counts. A module imports from lower
# floors; inside its own folder, also from its own. What is not listed has no place yet: add it.
ROOMS = {
  "types": (0, "base"),
  "naming": (0, "base"),
  "nested": (0, "base"),
  "writing": (0, "base"),
  "equations": (1, "machinery"),
  "embeddings": (0, "base"),
  "trigflow": (1, "mathematics"),
  "edm": (2, "mathematics"),
  "times": (2, "mathematics"),
  "distances": (1, "mathematics"),
  "weighting": (1, "mathematics"),
  "statistics": (1, "mathematics"),
  "ema": (1, "mathematics"),
  "ema.snapshots": (2, "program"),
  "ema.reconstruct": (6, "program"),
  "ema.sweep": (8, "program"),
  "ema.__main__": (9, "program"),
  "microbatch": (1, "mathematics"),
  "tangent": (2, "mathematics"),
  "guidance": (2, "mathematics"),
  "samplers": (2, "mathematics"),
  "oracle": (2, "mathematics"),
  "losses": (3, "mathematics"),
  "editing": (3, "mathematics"),
  "latents": (1, "mathematics"),
  "lpips": (1, "mathematics"),
  "search": (2, "mathematics"),
  "step_times": (3, "mathematics"),
  "networks": (2, "networks"),
  "networks.layers": (1, "networks"),
  "networks.walk": (2, "networks"),
  "networks.attention": (1, "networks"),
  "networks.attention_kernels": (1, "networks"),
  "networks.blockwise": (1, "networks"),
  "batching": (0, "base"),
  "npz": (0, "base"),
  "sharding": (1, "machinery"),
  "checkpoint": (1, "machinery"),
  "lock": (1, "machinery"),
  "optim": (1, "machinery"),
  "charts": (0, "machinery"),
  "costs": (1, "machinery"),
  "report": (1, "machinery"),
  "reporting": (1, "machinery"),
  "data": (1, "machinery"),
  "data.encoding": (4, "program"),
  "data.prepare": (5, "program"),
  "metrics": (1, "machinery"),
  "metrics.detectors": (2, "machinery"),
  "metrics.detectors.__main__": (9, "program"),
  "metrics.scoring": (3, "machinery"),
  "metrics.evaluators": (3, "machinery"),
  "convert": (3, "program"),
  "convert.write": (6, "program"),
  "convert.__main__": (9, "program"),
  "train_step": (3, "program"),
  "build": (4, "program"),
  "compiled_step": (5, "program"),
  "runs": (5, "program"),
  "slopes": (5, "program"),
  "doctor": (6, "program"),
  "results": (6, "program"),
  "train": (7, "program"),
  "sample": (8, "program"),
  "verify": (8, "program"),
  "plan": (8, "program"),
  "main": (9, "program"),
}
# Files that are one room: what runs write, the page made of it, and its curves.
SAME_FOLDER = {"charts": "reporting", "report": "reporting"}

LIBRARIES = {  # wing -> the only libraries it knows, beside the standard one
  "base": {"jax", "numpy", "jaxtyping"},
  "mathematics": {"jax", "numpy", "jaxtyping", "scipy"},
  "networks": {"jax", "numpy", "jaxtyping", "flax"},
}
CONFIGURED = {
  *("build", "compiled_step", "convert", "runs", "slopes", "doctor", "results", "train", "verify"),
  *("sample", "plan"),
}
OWNERS = {  # what is known in few places -> the rooms that may
  "nnx": {"networks", "metrics.detectors"},
  "networks": {"networks", "build", "convert"},  # where mathematics and networks meet
  "ml_collections": CONFIGURED | {"main"},
  "ConfigDict": CONFIGURED | {"main"},
  "absl.flags": {"main"},
  "orbax": {"checkpoint"},
  "grain": {"data"},
  "tensorflow_datasets": {"data"},
  "tensorboardX": {"reporting"},
  "tensorflow": set(),
  "torch": set(),
  **{
    f"jax.{name}": {"sharding", "results", "reporting", "main"}
    for name in ("devices", "local_devices", "process_index", "process_count")
  },
}
BANNED = {  # anywhere
  "os.environ": "environment variables are for launch scripts",
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


def module_name(path):
  """`losses.continuous` of cmjax/losses/continuous.py, `losses` of its __init__, "" of cmjax's."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(name):
  """(floor, wing) of a module, or of anything in it."""
  parts = name.split(".")
  for length in range(len(parts), 0, -1):
    if ".".join(parts[:length]) in ROOMS:
      return ROOMS[".".join(parts[:length])]
  raise AssertionError(f"cmjax.{name} has no floor: give it one in tests/house/imports_test.py.")


def folder(name):
  first = name.split(".")[0]
  return SAME_FOLDER.get(first, first)


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
  floor, wing = room(name) if name else (0, "base")
  for full in sorted(imported):
    top, _, rest = full.partition(".")
    parts = full.split(".")
    if not top:
      yield f"relative import {full}: write it out"
    elif parts[-1] == "*":
      yield f"star import of {full}"
    elif any(part.startswith("_") for part in parts if part != "__future__"):
      yield f"private import {full}"
    elif top != "cmjax":
      allowed = LIBRARIES.get(wing)
      if allowed is not None and top not in allowed | sys.stdlib_module_names:
        yield f"{full} in {wing}, which knows only {', '.join(sorted(allowed))}"
    elif name and folder(rest) == folder(name):
      if room(rest)[0] > floor:
        yield f"{full} is on a higher floor"
    else:
      other_floor, other_wing = room(rest)
      if other_floor >= floor:
        yield f"{full} is not on a lower floor"
      if wing != "program" and other_wing not in {"base", wing}:
        yield f"{full}: {wing} may not import {other_wing}"
      if wing == other_wing == "machinery":
        yield f"{full}: machinery files do not import each other"


def use_breaches(name, used):
  for full in sorted(used):
    short = full.removeprefix("cmjax.")
    for thing, owners in OWNERS.items():
      known = _starts(short, thing) or thing in {"nnx", "ConfigDict"} & set(full.split("."))
      if known and folder(name) not in owners and not any(_starts(name, o) for o in owners):
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
    ("build", "def f():\n  from cmjax import train", "lower floor"),
    ("networks.layers", "from cmjax.networks.mlp import MLP", "higher floor"),
    ("metrics.frechet", "from cmjax.metrics import evaluators", "higher floor"),
    ("losses.discrete", "from cmjax.networks import mlp", "may not import networks"),
    ("networks.edm2", "from cmjax import trigflow", "may not import mathematics"),
    ("metrics.evaluators", "from cmjax import samplers", "may not import mathematics"),
    ("losses.discrete", "from cmjax.optim import chain", "may not import machinery"),
    ("metrics.evaluators", "from cmjax.data import sources", "do not import each other"),
    ("tangent", "import optax", "knows only"),
    ("networks.mlp", "import clu.metrics", "knows only"),
    ("tangent", "from jax._src import core", "private"),
    ("tangent", "from cmjax.trigflow import *", "star"),
    ("tangent", "from . import trigflow", "relative"),
    ("train_step", "from flax import nnx", "only in metrics.detectors, networks"),
    ("build", "import flax\nx = flax.nnx.Param", "only in metrics.detectors, networks"),
    ("metrics.frechet", "from flax import nnx", "only in metrics.detectors, networks"),
    ("train", "from cmjax import networks", "only in build"),
    ("optim", "from ml_collections import ConfigDict", "only in build"),
    ("train_step", "def f(config: 'x', c: mlc.ConfigDict): pass", "only in build"),
    ("build", "from absl import flags", "only in main"),
    ("train", "import orbax.checkpoint as ocp", "only in checkpoint"),
    ("data.pipeline", "import jax\nn = jax.process_count()", "only in main, reporting"),
    ("build", "from jax import devices", "only in main, reporting"),
    ("convert.edm", "import torch", "only in tests"),
    ("main", "import os\nx = os.environ['A']", "launch scripts"),
    ("main", "from os import environ", "launch scripts"),
    ("convert.edm", "import pickle\npickle.load(f)", "never executed"),
    ("convert.edm", "from pickle import loads", "never executed"),
    ("build", "f = eval('1')", "never executed"),
    ("data.sources", "import numpy as np\nnp.load(f, allow_pickle=True)", "never executed"),
    ("train", "import jax\nf = jax.pmap(g)", "one way"),
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
    ("metrics.detectors.inception", "from flax import nnx"),
    ("reporting", "from cmjax.report import page"),
    ("build", "from cmjax import networks, trigflow\nfrom ml_collections import ConfigDict"),
    ("plan", "import jax\nn = topology.devices\ns = jax.eval_shape(f)"),
    ("data.sources", "import numpy as np\nnp.load(f, allow_pickle=False)"),
    ("convert.edm", "import pickle\nclass Reader(pickle.Unpickler): pass"),
  ],
)
def test_what_is_allowed_is_no_breach(name, source):
  assert not breaches(name, source)


def test_a_module_without_a_floor_is_named():
  with pytest.raises(AssertionError, match="cmjax.nowhere has no floor"):
    breaches("nowhere", "import jax")
