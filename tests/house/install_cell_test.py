"""The first cell of the notebooks: what it installs on which machine, and what it says."""

import importlib.util
import json
import pathlib
from importlib import metadata

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NEW = {"jax": "0.12.0", "jaxlib": "0.12.0", "numpy": "2.4.0"}
# Colab's: JAX, and its plugin of the same version.
OLD = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.1.0"}
PLUGIN_12 = {"jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"}
ASKS = {
  "jax": [
    "jaxlib<=0.12.0,>=0.12.0",
    "scipy>=1.13",
    'jax-cuda12-plugin[with-cuda]<=0.12.0,>=0.12.0; extra == "cuda12"',
    'jax-cuda13-plugin[with-cuda]<=0.12.0,>=0.12.0; extra == "cuda13"',
    'libtpu==0.0.50.*; extra == "tpu"',
  ],
  "jax-cuda12-plugin": ["jax-cuda12-pjrt==0.12.0", 'nvidia-cudnn-cu12>=9; extra == "with-cuda"'],
  "jaxlib": ["numpy>=2.0"],
}
T4 = ("Tesla T4", "550.54.15")


@pytest.fixture(name="cell")
def _cell(monkeypatch):
  """The cell as a module, on a machine without Colab, GPU or TPU."""
  spec = importlib.util.spec_from_file_location("install_cell", FOLDER / "install_cell.py")
  cell = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(cell)
  for name in ("COLAB_RELEASE_TAG", "TPU_ACCELERATOR_TYPE"):
    monkeypatch.delenv(name, raising=False)
  return cell


class Machine:
  """A machine whose packages are a dict, which a stub of pip changes."""

  def __init__(self, cell, monkeypatch, there, *, gpu=None, tpu=False, cmjax=False, colab=True):
    self.there, self.asked = dict(there), []
    if colab:
      monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    found = {"cmjax": cmjax, "matplotlib": True}
    monkeypatch.setattr(cell.importlib.util, "find_spec", lambda name: found.get(name) or None)
    monkeypatch.setattr(cell, "nvidia", lambda: gpu)
    monkeypatch.setattr(cell, "has_tpu", lambda: tpu)
    monkeypatch.setattr(cell, "version", self.there.get)
    monkeypatch.setattr(cell, "versions", lambda: dict(self.there))
    monkeypatch.setattr(cell, "pip", self.pip)
    monkeypatch.setattr(cell.metadata, "requires", ASKS.get)
    monkeypatch.setattr(cell.metadata, "packages_distributions", dict)  # nothing was imported

  def pip(self, verb, *arguments):
    """As pip does: cmjax brings the new JAX, an extra of it the plugin."""
    self.asked.append((verb, *arguments))
    if verb == "uninstall":
      for name in arguments[1:]:
        del self.there[name]
      return
    self.there |= NEW
    for cuda in ("12", "13"):
      if f"jax[cuda{cuda}]" in arguments:
        names = (f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt")
        self.there |= dict.fromkeys(names, NEW["jax"])
    if "jax[tpu]" in arguments:
      self.there["libtpu"] = "0.0.50.1"


CMJAX = "cmjax @ git+https://github.com/cmjax/cmjax"
INSTALLS = {
  # (packages before, the machine): what pip is asked for
  "CPU": (OLD, {}, [("install", CMJAX)]),
  "CPU with Colab's plugin": (
    OLD | PLUGIN_12, {},
    [("install", CMJAX), ("uninstall", "--yes", "jax-cuda12-plugin", "jax-cuda12-pjrt")],
  ),
  "GPU": (OLD | PLUGIN_12, {"gpu": T4}, [("install", CMJAX, "jax[cuda12]")]),
  "GPU, no plugin": (OLD, {"gpu": T4}, [("install", CMJAX, "jax[cuda12]")]),
  "GPU with CUDA 13": (
    OLD | {"jax-cuda13-plugin": "0.7.2"}, {"gpu": ("L4", "580.65.06")},
    [("install", CMJAX, "jax[cuda13]")],
  ),
  "the driver is too old for CUDA 13": (
    OLD | {"jax-cuda13-plugin": "0.7.2"}, {"gpu": T4},
    [("install", CMJAX, "jax[cuda12]"), ("uninstall", "--yes", "jax-cuda13-plugin")],
  ),
  "TPU": (OLD | {"libtpu": "0.0.21"}, {"tpu": True}, [("install", CMJAX, "jax[tpu]")]),
  "cmjax without the plugin that fits": (
    NEW | PLUGIN_12, {"gpu": T4, "cmjax": True}, [("install", "jax[cuda12]")],
  ),
  "all is well": (
    NEW | dict.fromkeys(PLUGIN_12, NEW["jax"]), {"gpu": T4, "cmjax": True}, [],
  ),
  "somebody's own machine": (NEW, {"gpu": T4, "cmjax": True, "colab": False}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", INSTALLS)
def test_the_plugin_that_fits_comes_with_jax(cell, monkeypatch, case):
  there, machine, asked = INSTALLS[case]
  machine = Machine(cell, monkeypatch, there, **machine)
  monkeypatch.setattr(cell, "says", lambda *_: "")
  cell.prepare()
  assert machine.asked == asked
  gpu, extra = cell.nvidia(), cell.extra_for(cell.nvidia(), cell.has_tpu())
  assert list(cell.unmet("jax", extra)) == [] or case == "somebody's own machine"
  assert (gpu is None) == (extra in (None, "tpu"))


@pytest.mark.parametrize(
  ("loaded", "named"), [((), None), (("numpy",), "numpy"), (("jax", "numpy"), "jax, numpy")]
)
def test_a_restart_is_asked_for_where_old_modules_are_in_memory(cell, monkeypatch, loaded, named):
  Machine(cell, monkeypatch, OLD | {"unchanged": "1.0"})
  # A module that is in memory, and one that is not, with the packages they are of.
  modules = {"json": [*loaded, "unchanged"], "never_imported": list(OLD)}
  monkeypatch.setattr(cell.metadata, "packages_distributions", lambda: modules)
  if named is None:
    cell.install([CMJAX])
    return
  with pytest.raises(cell.RestartNeeded, match=f"RESTART NEEDED.*the old {named} in memory"):
    cell.install([CMJAX])


def test_a_notebook_shows_the_request_without_a_traceback(cell):
  assert cell.RestartNeeded("Restart.")._render_traceback_() == ["Restart."]


class Device:
  def __init__(self, platform, kind):
    self.platform, self.device_kind = platform, kind


@pytest.mark.parametrize(
  ("there", "gpu", "device", "said"),
  [
    ({}, T4, Device("gpu", "Tesla T4"), ["It computes on 1 GPU: Tesla T4."]),
    ({}, None, Device("cpu", "cpu"), ["It computes on the CPU; no GPU and no TPU was found"]),
    (PLUGIN_12, T4, Device("cpu", "cpu"), [
      ">>> THIS MACHINE HAS a GPU (Tesla T4, driver 550.54.15), BUT JAX DOES NOT USE IT.",
      "jax 0.12.0 wants jax-cuda12-plugin<=0.12.0,>=0.12.0; 0.7.2 is installed.",
      '%pip install "jax[cuda12]"',
    ]),
    ({}, T4, Device("cpu", "cpu"), ["wants jax-cuda12-plugin<=0.12.0,>=0.12.0; it is not"]),
    (dict.fromkeys(PLUGIN_12, "0.12.0"), T4, Device("cpu", "cpu"), ["the driver or CUDA is at"]),
    (dict.fromkeys(PLUGIN_12, "0.12.0") | {"jax-cuda12-pjrt": "0.11.0"}, T4, Device("cpu", "cpu"),
     ["jax-cuda12-plugin 0.12.0 wants jax-cuda12-pjrt==0.12.0; 0.11.0 is installed."]),
  ],
)  # fmt: skip
def test_a_jax_that_does_not_see_the_gpu_is_told_loudly(
  cell, monkeypatch, there, gpu, device, said
):
  Machine(cell, monkeypatch, NEW | there, gpu=gpu, cmjax=True)
  text = cell.says(gpu, False, cell.extra_for(gpu, False), [device])
  assert [part for part in said if part not in text] == []
  assert ("DOES NOT USE IT" in text) == (gpu is not None and device.platform == "cpu")


@pytest.mark.parametrize(
  ("script", "found"),
  [
    ("echo 'Tesla T4, 550.54.15'", T4),
    ("echo 'NVIDIA L4, 580.65.06'; echo 'NVIDIA L4, 580.65.06'", ("NVIDIA L4", "580.65.06")),
    ("echo 'NVIDIA-SMI has failed, see dmesg'; exit 9", None),
    ("echo 'No devices were found'", None),
  ],
)
def test_the_driver_says_which_gpu_there_is(cell, monkeypatch, tmp_path, script, found):
  (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
  (tmp_path / "nvidia-smi").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert cell.nvidia() == found


@pytest.mark.parametrize(
  ("card", "found"), [(("0x1ae0", "0x0063"), True), (("0x1ae0", "0x0042"), False)]
)
def test_a_tpu_is_told_from_a_network_card_of_the_same_vendor(cell, tmp_path, card, found):
  (tmp_path / "0000:00:04.0").mkdir()
  for name, value in zip(("vendor", "device"), card, strict=True):
    (tmp_path / "0000:00:04.0" / name).write_text(value + "\n")
  assert cell.has_tpu(str(tmp_path / "*")) == found


def test_the_cell_understands_the_jax_that_is_installed(cell):
  """Its words and numbers are those of the real metadata."""
  assert list(cell.unmet("jax")) == []
  missing = " ".join(cell.unmet("jax", "cuda12"))
  if cell.version("jax-cuda12-plugin") is None:
    assert f"jax {metadata.version('jax')} wants jax-cuda12-plugin" in missing
  assert all(cell.version(name) == metadata.version(name) for name in ("jax", "numpy"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_begins_with_it(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  first = next(cell for cell in cells if cell["cell_type"] == "code")
  wanted = (FOLDER / "install_cell.py").read_text(encoding="utf-8").rstrip("\n")
  assert "".join(first["source"]) == wanted, "run `make notebooks`"
  assert first["metadata"]["cellView"] == "form"  # Colab shows the fields and hides the code
