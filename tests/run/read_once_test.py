"""Over all processes a restart reads each file once, and finds every damage as one process does."""

import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cmjax.base import sharding
from cmjax.run import checkpoint, read_once
from helpers.threads import Processes


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


pytestmark = pytest.mark.devices


def test_files_are_shared_out_once_and_evenly_and_to_those_that_wrote_them():
  rng = np.random.default_rng(0)
  sizes = {f"state/d/{i}": int(size) for i, size in enumerate(rng.integers(1, 10**6, 400))}
  parts = read_once.shares(sizes, 7)
  assert sorted(sum(parts, [])) == sorted(sizes)
  loads = [sum(sizes[name] for name in part) for part in parts]
  assert max(loads) - min(loads) <= max(sizes.values())
  written = {f"state/ocdbt.process_{i}/d/{k}": 1000 for i in range(4) for k in "ab"}
  assert read_once.shares(written, 4) == [
    [f"state/ocdbt.process_{i}/d/{k}" for k in "ab"] for i in range(4)
  ]
  # All of one process, as where replicas did not share the writing.
  alone = {f"state/ocdbt.process_0/d/{k}": 1000 for k in range(8)}
  assert max(len(part) for part in read_once.shares(alone, 4)) <= 3


def test_each_file_is_read_by_one_process_and_all_know_all(monkeypatch, tmp_path):
  contents = {f"a/{i}": os.urandom(100 * i) for i in range(1, 9)}
  (tmp_path / "a").mkdir()
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  read, digest = [], read_once._digest
  monkeypatch.setattr(read_once, "_digest", lambda path: read.append(path) or digest(path))
  sizes = {name: len(content) for name, content in contents.items()} | {"a/gone": 50}
  processes = Processes(monkeypatch, 3)
  found = processes.run(lambda _: read_once.digests(tmp_path, sizes, "a checkpoint"))
  assert sorted(read) == sorted(tmp_path / name for name in sizes)
  assert found[0] == found[1] == found[2]
  assert found[0].pop("a/gone") == "FileNotFoundError: No such file or directory"
  assert found[0] == {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()}


def sharded(shape, mesh, *spec):
  return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, P(*spec)))


@pytest.fixture(name="two_processes")
def _two_processes(monkeypatch):
  """The first four of eight devices are one process's, as far as reading goes."""
  monkeypatch.setattr(read_once, "_process_of", lambda device: device.id // 4)
  read_once._in_several_processes.cache_clear()
  yield
  read_once._in_several_processes.cache_clear()


def test_replicas_on_several_processes_are_read_in_the_parts_that_orbax_writes(two_processes):
  data, both = sharding.make_mesh(8, 1), sharding.make_mesh(2, 4)
  layout = {
    "whole": sharded((256, 128), data),
    "second": sharded((3, 3, 64, 64), data),
    "fsdp": sharded((256, 128), both, None, "fsdp"),
    "along": sharded((64, 512), both, "fsdp"),
    "small": sharded((64,), data),
    "odd": sharded((129, 129), data),
  }
  specs = {name: x.sharding.spec for name, x in read_once.in_parts(layout).items()}
  assert specs["whole"] == P("data", None) and specs["second"] == P(None, None, "data", None)
  assert specs["fsdp"] == P("data", "fsdp") and specs["along"] == P(("fsdp", "data"), None)
  assert specs["small"] == P() and specs["odd"] == P()


def test_within_one_process_and_without_replicas_nothing_is_split(two_processes):
  one = sharding.make_mesh(4, 1, devices=jax.devices()[:4])
  inside = jax.sharding.Mesh(
    np.array(jax.devices()).reshape(4, 2).T, ("data", "fsdp"), axis_types=one.axis_types
  )  # replicas of a shard are neighbours in one process
  plain = jax.ShapeDtypeStruct((256, 128), np.float32)
  layout = [
    sharded((256, 128), one),
    sharded((256, 128), inside, "fsdp"),
    sharded((256, 128), sharding.make_mesh(1, 8), None, "fsdp"),
    plain,
  ]
  assert read_once.in_parts(layout) == layout
  assert inside.devices.shape == (2, 4)


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)])
def test_what_is_read_in_parts_is_what_was_saved_bit_for_bit(two_processes, tmp_path, sizes):
  mesh = sharding.make_mesh(*sizes)
  values = np.random.default_rng(0).integers(0, 2**32, (256, 128), np.uint32).view(np.float32)
  state = {"w": jnp.asarray(values), "b": jnp.arange(7.0), "step": jnp.asarray(3)}
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  layout = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    *(shapes, sharding.shard_params(shapes, mesh)),
  )
  assert read_once.in_parts(layout)["w"].sharding != layout["w"].sharding
  stored = checkpoint.Checkpoints(tmp_path)
  stored.save(1, jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), state, layout), {})
  stored.close()
  for partial in (False, True):
    names = {"w": layout["w"]} if partial else layout
    restored = checkpoint.read(tmp_path, lambda meta, names=names: names, partial=partial).state
    assert restored.keys() == names.keys()
    for name, x in restored.items():
      assert x.sharding == layout[name].sharding
      assert np.asarray(x).tobytes() == np.asarray(state[name]).tobytes()
