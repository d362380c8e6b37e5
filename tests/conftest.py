"""Strict numerics for all tests; one device, but where more are asked for; programs that are kept.

Compiling is most of what tests do. What is compiled is kept, for the next test, worker and run and
for the programs that tests start, in ~/.cache/cmjax/tests-<jax> or where JAX_COMPILATION_CACHE_DIR
says. An empty folder there shows what a first run costs. Bytecode is kept as well, in __pycache__,
even where PYTHONDONTWRITEBYTECODE is set: what checks types is added to it, which takes long.

JAX starts with eight devices. A test sees the first of them alone, whose programs compile faster,
unless it is about devices and says so: `@pytest.mark.devices`.
"""

import contextlib
import gc
import os
import pathlib
import sys
import time

import jax
import pytest

from helpers import checking

checking.install()
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of workers and of what they start: they share the cores
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
all_devices, jax.devices = jax.devices, lambda *args: jax.local_devices()[:1]
one_device = jax.devices

KEPT = 30 * 24 * 3600  # seconds: a program older than that was compiled from what is no more
# With names of JAX, as variables of the environment too: what a test starts has the same.
COMPILING = {
  "jax_persistent_cache_min_compile_time_secs": 0,  # a test has a hundred that take 10 ms each
  "jax_persistent_cache_min_entry_size_bytes": -1,
  "jax_disable_most_optimizations": True,  # LLVM's: a fifth of compiling, and tests run but briefly
}


def pytest_sessionstart(session):
  from cmjax.base import sharding  # not above: the checks of types are installed between the two

  sharding.keep_compiled(f"~/.cache/cmjax/tests-{jax.__version__}")
  folder = jax.config.jax_compilation_cache_dir
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
  for name, value in COMPILING.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
  if not hasattr(session.config, "workerinput"):  # once, before there are workers
    _remove_old(pathlib.Path(folder))


def pytest_collection_modifyitems(config, items):
  """Storms run where they are asked for, `-m soak`, and not with those that are merely slow."""
  if "soak" in config.option.markexpr:
    return
  storms = [item for item in items if item.get_closest_marker("soak")]
  items[:] = [item for item in items if item not in storms]
  config.hook.pytest_deselected(items=storms)


def pytest_collection_finish():
  # What is there by now stays. Collections need not look at it again, and they are many: tracing
  # makes millions of objects, and few of them are in circles.
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 100)


def _remove_old(folder):
  for path in folder.glob("*-cache"):
    with contextlib.suppress(OSError):  # another run was faster
      if path.stat().st_mtime < time.time() - KEPT:
        path.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  marked = lambda name: item.get_closest_marker(name) is not None
  # Peers are networks of full size: they run longer than they compile.
  optimised = marked("heavy") or "peers" in item.path.parts
  jax.config.update("jax_disable_most_optimizations", not optimised)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not optimised)
  every = marked("devices")
  jax.devices = all_devices if every else one_device
  return (yield)


@pytest.fixture(scope="session", autouse=True)
def _shared_networks():
  """To put a network together takes up to a second, and most tests want the same few."""
  from helpers import shared_programs as helper

  with helper.shared_networks():
    yield


@pytest.fixture(scope="module")
def shared_programs():
  """Experiments of a module that differ in nothing that is compiled are compiled once."""
  from helpers import shared_programs as helper

  with helper.shared_programs():
    yield
