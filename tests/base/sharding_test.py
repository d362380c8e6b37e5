"""One device is not a special case: the same run on one device and on a mesh of eight."""

import dataclasses
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cmjax import experiment
from cmjax.base import sharding
from cmjax.networks import layers
from cmjax.program import compiled_step
from helpers import tiny

pytestmark = pytest.mark.devices
MESH = sharding.make_mesh(2, 4, devices=jax.local_devices())
ONE = sharding.make_mesh(devices=jax.local_devices()[:1])


def test_minus_one_is_what_is_left_of_the_devices():
  assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
  assert dict(sharding.make_mesh(-1, 4).shape) == {"data": 2, "fsdp": 4}
  assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((3, 2), r"mesh=.*'data': 3, 'fsdp': 2.* does not fit 8 devices.*divides 8"),
    ((-1, 3), r"does not fit 8 devices: data \* fsdp must equal their number"),
    ((-1, -1), "-1 .the rest. for at most one axis"),
    ((0, 8), "sizes are positive"),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_what_would(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(*sizes)


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh is laid out by, of a device that is not there."""

  id: int
  process_index: int
  platform: str = "gpu"
  device_kind: str = "H100"
  coords: tuple[int, ...] = ()
  core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class SliceDevice(Device):
  slice_index: int = 0


def nodes(num, size, one_process_each=False):
  """GPUs of several nodes in turns: id 0 on node 0, id 1 on node 1, ..."""
  return [
    SliceDevice(i, process_index=i if one_process_each else i % num, slice_index=i % num)
    for i in range(num * size)
  ]


def tpus(*slices, shape=(4, 4, 4)):
  """Slices of a TPU v5p: the hosts have 2x2x1 chips each."""
  hosts = (shape[0] // 2, shape[1] // 2, shape[2])
  return [
    SliceDevice(
      id=i,
      process_index=int(np.ravel_multi_index((x // 2, y // 2, z), hosts)) + s * int(np.prod(hosts)),
      platform="tpu",
      device_kind="TPU v5",
      coords=(x, y, z),
      slice_index=s,
    )
    for i, (s, z, y, x) in enumerate(itertools.product(slices, *map(range, reversed(shape))))
  ]


def slices_of(mesh):
  """The slice of each device [data, fsdp]."""
  return np.vectorize(lambda d: d.slice_index)(mesh.devices)


@pytest.mark.parametrize("one_process_each", [False, True])  # one for each node, or for each GPU
def test_fsdp_lies_within_a_node_and_data_goes_across(one_process_each):
  devices = nodes(2, 4, one_process_each)
  np.testing.assert_array_equal(
    slices_of(sharding.make_mesh(-1, 2, devices=devices)), [[0, 0], [0, 0], [1, 1], [1, 1]]
  )
  np.testing.assert_array_equal(
    slices_of(sharding.make_mesh(2, -1, devices=devices)), [[0] * 4, [1] * 4]
  )
  assert dict(sharding.make_mesh(devices=devices).shape) == {"data": 8, "fsdp": 1}


def test_fsdp_across_slices_is_refused_unless_asked_for():
  message = (
    "fsdp=8 does not fit into one of the 2 slices of 4 devices: .* Take an fsdp that divides 4; or "
    "a multiple of 4, with across_slices=True in config.mesh"
  )
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(1, 8, devices=nodes(2, 4))
  mesh = sharding.make_mesh(1, 8, across_slices=True, devices=nodes(2, 4))
  np.testing.assert_array_equal(slices_of(mesh), [[0] * 4 + [1] * 4])
  mesh = sharding.make_mesh(-1, 4, across_slices=True, devices=nodes(4, 2))
  np.testing.assert_array_equal(slices_of(mesh), [[0, 0, 1, 1], [2, 2, 3, 3]])
  with pytest.raises(ValueError, match="fsdp=2 does not fit into one of the 4 slices of 3 devices"):
    sharding.make_mesh(-1, 2, across_slices=True, devices=nodes(4, 3))
  with pytest.raises(ValueError, match=r"slices have \[3, 4\] devices.* equally many"):
    sharding.make_mesh(devices=nodes(2, 4)[:-1])


def test_where_no_slices_are_known_the_processes_of_gpus_are_the_nodes():
  devices = [Device(i, process_index=i % 2) for i in range(8)]
  mesh = sharding.make_mesh(-1, 4, devices=devices)
  assert [{d.process_index for d in row} for row in mesh.devices] == [{0}, {1}]
  with pytest.raises(ValueError, match="fsdp=8 does not fit into one of the 2 slices"):
    sharding.make_mesh(1, 8, devices=devices)
  # One process for each GPU says nothing of nodes, and those of a CPU are on one machine.
  for change in (dict(process_index=None), dict(platform="cpu")):
    others = [
      dataclasses.replace(d, **{k: d.id if v is None else v for k, v in change.items()})
      for d in devices
    ]
    assert sharding.make_mesh(1, 8, devices=others).devices[0].tolist() == others


def test_slices_of_a_torus_are_laid_out_along_it_and_only_data_leaves_them():
  devices = tpus(0, 1)
  for fsdp in (4, 8, 64):  # jax.make_mesh alone has none of 8 on a torus of 4x4x4
    mesh = sharding.make_mesh(-1, fsdp, devices=devices)
    assert mesh.devices.shape == (128 // fsdp, fsdp) and len({*mesh.devices.flat}) == 128
    assert all(len({*row}) == 1 for row in slices_of(mesh))
    # The ends of the slow axis: half of the replicas in each slice.
    assert (slices_of(mesh)[:, 0] == np.repeat([0, 1], 64 // fsdp)).all()


def test_devices_of_one_machine_are_taken_as_they_come():
  for data, fsdp in ((8, 1), (2, 4), (1, 8)):
    grid = sharding.make_mesh(data, fsdp).devices
    assert grid.tolist() == np.array(jax.devices()).reshape(data, fsdp).tolist()


def test_the_rows_of_a_host_are_those_of_its_devices_wherever_they_are_in_the_mesh(monkeypatch):
  mesh, rows = sharding.make_mesh(-1, 4, devices=tpus(0, shape=(4, 4, 1))), []
  for process in range(4):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    rows.append(sharding.local_rows(mesh, 32))
  np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(32))
  places = [d.process_index for d in mesh.devices.flat]
  assert places == [0, 0, 2, 2, 0, 0, 2, 2, 1, 1, 3, 3, 1, 1, 3, 3]
  np.testing.assert_array_equal(rows[0], [0, 1, 2, 3, 8, 9, 10, 11])


@pytest.mark.parametrize(("size", "nearest"), [(12, 16), (10, 8), (3, 8), (255, 256)])
def test_a_batch_that_the_devices_do_not_divide_names_the_nearest(size, nearest):
  sharding.check_batch_size(256, MESH)
  with pytest.raises(ValueError, match=f"batch_size={size} .* 8 devices. Nearest: {nearest}"):
    sharding.check_batch_size(size, MESH)


def test_large_arrays_are_split_along_the_last_axis_that_fsdp_divides():
  shapes = dict(a=(128, 128), b=(128, 129), c=(129, 130), d=(8, 8), e=(), f=(3, 3, 64, 64))
  tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
  specs = jax.tree.map(lambda s: s.spec, sharding.shard_params(tree, MESH))
  assert specs == dict(
    a=P(None, "fsdp"), b=P("fsdp"), c=P(), d=P(), e=P(), f=P(None, None, None, "fsdp")
  )
  assert jax.tree.leaves(sharding.shard_params(tree, ONE)) == [sharding.replicated(ONE)] * 6


def test_a_global_batch_keeps_its_order_over_the_devices():
  image = np.arange(32, dtype=np.float32).reshape(16, 2)
  batch = sharding.global_batch({"image": image}, MESH)
  np.testing.assert_array_equal(batch["image"], image)
  assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 2)}


def run_steps(given, mesh, num_steps):
  """The state after so many steps from the seed, as `train` makes them."""
  tx = experiment.transformation(given)
  init = experiment.state_init(given, tx)
  state, shardings = sharding.create(init, mesh, jax.random.key(given.run.seed))
  frozen = {"teacher": None, "lpips": None}
  step = jax.jit(
    compiled_step.make_step_fn(given, tx),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  key = jax.device_put(jax.random.key(1), sharding.replicated(mesh))
  batches = experiment.batches(given, mesh, 0)
  for _ in range(num_steps):
    state, _ = step(state, next(batches), key, frozen)
  batches.close()
  return state


@pytest.mark.slow
def test_one_device_and_a_mesh_of_two_by_four_train_the_same_parameters():
  given = tiny.experiment_of(**{"net.width": 128, "batch_size": 64, "optim.lr": 1e-3})
  one, eight = run_steps(given, ONE, 20), run_steps(given, MESH, 20)

  kernel = eight.params["net"]["blocks"]["block0"]["fc0"]["kernel"]
  assert kernel.sharding.spec == P(None, "fsdp") and not kernel.sharding.is_fully_replicated
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(128, 32)}
  moments = [x for x in jax.tree.leaves(eight.opt_state) if x.shape == kernel.shape]
  averages = [eight.ema[name]["blocks"]["block0"]["fc0"]["kernel"] for name in given.averages]
  assert {x.sharding for x in moments + averages} == {kernel.sharding}

  # Tensor by tensor: 7e-7 at most, where the sums over the batch were added in another order.
  for name, x in tiny.leaves(one.params).items():
    difference = np.linalg.norm(tiny.leaves(eight.params)[name] - x) / np.linalg.norm(x)
    assert difference < 1e-5, f"{name}: {difference:.1e}"
  assert np.linalg.norm(one.params["net"]["fc_out"]["kernel"]) > 0.01  # it starts at 0


def test_activations_stay_split_along_the_batch_whatever_the_weights_are_split_along():
  split = jax.sharding.NamedSharding(MESH, P(None, "fsdp"))
  x, w = np.ones((16, 256), np.float32), jax.device_put(np.ones((256, 256), np.float32), split)

  def program(keep):
    with jax.set_mesh(MESH):
      return jax.jit(lambda x, w: keep(jnp.tanh(x @ w / 256))).lower(x, w).compile()

  kept, free = program(layers.along_batch), program(lambda x: x)
  assert kept.output_shardings.is_equivalent_to(sharding.batch_sharding(MESH), 2)
  assert not free.output_shardings.is_equivalent_to(sharding.batch_sharding(MESH), 2)
  np.testing.assert_allclose(kept(x, w), np.tanh(1.0), rtol=1e-6)


def test_a_layout_changes_no_derivative_and_needs_a_mesh_that_divides_the_batch():
  x, v = jnp.arange(16.0).reshape(8, 2), jnp.ones((8, 2))
  assert layers.along_batch(x) is x
  with jax.set_mesh(MESH):
    assert layers.along_batch(x[:6]).shape == (6, 2)
    y, dy = jax.jit(lambda x, v: jax.jvp(layers.along_batch, (x,), (v,)))(x, v)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(layers.along_batch(x) ** 2)))(x)
  with jax.set_mesh(ONE):
    assert layers.along_batch(x) is x
  np.testing.assert_array_equal(y, x)
  np.testing.assert_array_equal(dy, v)
  np.testing.assert_array_equal(gradient, 2 * x)


def test_compiled_programs_are_kept_unless_jax_was_told_where(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    sharding.keep_compiled(tmp_path / "ours")
    first = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert first.parent == tmp_path / "ours" and len(first.name) == 12
    sharding.keep_compiled(tmp_path / "others")
    assert pathlib.Path(jax.config.jax_compilation_cache_dir) == first
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
