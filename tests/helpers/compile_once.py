"""A fixture: one compile cache for all runs of a test file."""

import jax
import pytest

CACHE = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True, scope="module")
def _compile_once(tmp_path_factory):
  """The same few programs serve all runs here: compiling them is nearly all of the time."""
  before = {name: getattr(jax.config, name) for name in CACHE}
  for name, value in zip(CACHE, (str(tmp_path_factory.mktemp("cache")), 0, -1), strict=True):
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
