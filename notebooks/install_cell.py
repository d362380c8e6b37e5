# @title Install cmjax, and see what this machine computes on { display-mode: "form" }
# The first cell of every notebook: `make notebooks` copies it from notebooks/install_cell.py.
import glob
import importlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from importlib import metadata

CMJAX = "cmjax @ git+https://github.com/cmjax/cmjax"  # @param {type: "string"}
CUDA = "automatic"  # @param ["automatic", "12", "13"]

# Of JAX's own table of PCI devices; Google's network cards have the same vendor.
TPU_DEVICES = {"0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


class RestartNeeded(Exception):
  """Stops "Run all". A notebook shows the message, and no traceback."""

  def _render_traceback_(self):
    return [str(self)]


def version(package):
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def nvidia():
  """(name, driver) of the first GPU, or None: asked of the driver, whatever JAX sees."""
  if shutil.which("nvidia-smi") is None:
    return None
  query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
  done = subprocess.run(query, capture_output=True, text=True)
  gpus = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 1]
  return tuple(gpus[0]) if done.returncode == 0 and gpus else None


def has_tpu(devices="/sys/bus/pci/devices/*"):
  cards = [pathlib.Path(card) for card in glob.glob(devices)]
  read = lambda card, name: (card / name).read_text().strip()
  return "TPU_ACCELERATOR_TYPE" in os.environ or any(
    read(card, "vendor") == "0x1ae0" and read(card, "device") in TPU_DEVICES for card in cards
  )


def extra_for(gpu, tpu):
  """Which extra of JAX has the plugin for this machine: cuda12, cuda13, tpu, or none."""
  if gpu is None:
    return "tpu" if tpu else None
  if CUDA != "automatic":
    return f"cuda{CUDA}"
  # CUDA 12 runs on every driver; CUDA 13 wants 580, and is kept where it is installed alone.
  only_13 = version("jax-cuda13-plugin") and not version("jax-cuda12-plugin")
  return "cuda13" if only_13 and int(gpu[1].split(".")[0]) >= 580 else "cuda12"


def unmet(package, extra=""):
  """What JAX asks of its own plugins and does not get, as sentences."""
  from packaging.requirements import Requirement

  for text in metadata.requires(package) or ():
    asked = Requirement(text)
    if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
      continue
    if asked.name != "libtpu" and not asked.name.startswith("jax"):
      continue
    there = version(asked.name)
    if there is None or not asked.specifier.contains(there, prereleases=True):
      yield f"{package} {version(package)} wants {asked.name}{asked.specifier}; " + (
        f"{there} is installed" if there else "it is not installed"
      )
    else:
      yield from unmet(asked.name)


def pip(*arguments):
  command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2_000:]}")


def versions():
  importlib.invalidate_caches()
  return {found.name: found.version for found in metadata.distributions()}


def install(packages):
  """Installs them, and asks for a restart if this session holds older ones in memory."""
  print(f"Installs {', '.join(packages)}. This takes a few minutes.")
  before = versions()
  pip("install", *packages)
  now = versions()
  # A plugin of another version than JAX's serves nothing, and JAX complains of it at every start.
  plugins = [name for name in now if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", name)]
  if old := [name for name in plugins if now[name] != now["jaxlib"]]:
    pip("uninstall", "--yes", *old)
  changed = {name for name in before if now.get(name) != before[name]}
  modules = metadata.packages_distributions()
  loaded = {name for top, names in modules.items() if top in sys.modules for name in names}
  if stale := sorted(loaded & changed):
    jax = f"JAX is now {now['jax']}. " if "jax" in changed else ""
    raise RestartNeeded(
      f"\n>>> RESTART NEEDED. {jax}This session still has the old {', '.join(stale)} in memory.\n"
      ">>> In Colab: Runtime > Restart session. In Jupyter: Kernel > Restart.\n"
      ">>> Then run this cell again. It will install nothing."
    )


def says(gpu, tpu, extra, devices):
  """What the machine is and what JAX computes on, in plain words."""
  import cmjax

  head = f"cmjax {cmjax.__version__}, JAX {version('jax')}."
  there = f"a GPU ({gpu[0]}, driver {gpu[1]})" if gpu else "a TPU" if tpu else None
  if devices[0].platform != "cpu":
    kind = "GPU" if devices[0].platform in ("gpu", "cuda", "rocm") else "TPU"
    return f"{head} It computes on {len(devices)} {kind}: {devices[0].device_kind}."
  if there is None:
    return f"{head} It computes on the CPU; no GPU and no TPU was found on this machine."
  reasons = [f"{reason}." for reason in unmet("jax", extra)]
  if reasons:
    reasons.append(
      f'To mend it: %pip install "jax[{extra}]", restart the session, run this cell again.'
    )
  else:
    reasons = [
      "The versions fit, so that the driver or CUDA is at fault. JAX's log above says what it met.",
      "In Colab: Runtime > Disconnect and delete runtime, then start anew.",
    ]
  lines = [
    "=" * 76,
    f"THIS MACHINE HAS {there}, BUT JAX DOES NOT USE IT.",
    f"{head} It computes on the CPU, which is many times slower.",
    *reasons,
    "=" * 76,
  ]
  return "\n".join(f">>> {line}" for line in lines)


def prepare():
  gpu, tpu = nvidia(), has_tpu()
  extra = extra_for(gpu, tpu)
  packages = [CMJAX] if importlib.util.find_spec("cmjax") is None else []
  packages += ["matplotlib"] if importlib.util.find_spec("matplotlib") is None else []
  # Only Colab's JAX is changed unasked; elsewhere somebody chose it, and the last lines judge it.
  may = packages or "COLAB_RELEASE_TAG" in os.environ
  if extra and may and (packages or list(unmet("jax", extra))):
    packages.append(f"jax[{extra}]")
  if packages:
    install(packages)
  import jax

  print(says(gpu, tpu, extra, jax.devices()))


if __name__ == "__main__":
  prepare()
