"""Strict numerics, and eight devices, for all tests; and programs that are compiled once and kept.

Compiling is most of what tests do. What is compiled is kept, for the next test, worker and run and
for the programs that tests start, in ~/.cache/cmjax/tests-<jax> or where JAX_COMPILATION_CACHE_DIR
says. An empty folder there shows what a first run costs.
"""

import contextlib
import os
import pathlib
import time

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

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


def _remove_old(folder):
  for path in folder.glob("*-cache"):
    with contextlib.suppress(OSError):  # another run was faster
      if path.stat().st_mtime < time.time() - KEPT:
        path.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  # Peers run networks of full size.
  optimised = item.get_closest_marker("heavy") is not None or "peers" in item.path.parts
  jax.config.update("jax_disable_most_optimizations", not optimised)
  return (yield)
