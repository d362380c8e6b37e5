"""What is compiled ahead of time is the step that trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cmjax import build, plan, sharding, train

MESH = sharding.make_mesh(2, 4)


def test_the_planned_step_is_the_one_that_trains():
  config = tiny.config(**{"net.width": 128})  # wide enough to be split
  net, key = build.network(config), jax.random.key(3)
  frozen = {"teacher": None, "lpips": None}
  state, _ = sharding.create(build.state_init(config, net), MESH, key)
  images = np.random.default_rng(0).normal(size=(config.batch_size, 2)).astype("f")
  batch = sharding.global_batch({"image": images}, MESH)
  key = jax.device_put(key, sharding.replicated(MESH))
  expected, _ = jax.jit(train.make_step_fn(config, net, None, frozen))(state, batch, key, frozen)
  expected = jax.device_get(expected)
  compiled = plan.compile_step(config, MESH)
  assert compiled.memory_analysis().argument_size_in_bytes > 0
  got, _ = compiled(state, batch, key, frozen)  # donates the state: last
  assert "fsdp" in got.params["net"]["blocks"]["block0"]["fc0"]["kernel"].sharding.spec
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), got, expected)


def test_a_plan_has_the_teacher_and_the_labels_that_a_run_would_have():
  config = tiny.config(**{"teacher.workdir": "somewhere"}).unlock()
  config.net.update(num_classes=3, guidance=True)
  config.loss.update(name="scd", guidance=(1.0, 2.0))
  state, batch, _, frozen = plan.abstract_arguments(config, MESH)
  assert batch["label"].shape == (16,) and batch["label"].dtype == jnp.int32
  assert batch["image"].sharding == sharding.batch_sharding(MESH)
  assert "map_guidance" in state.params["net"] and "map_guidance" not in frozen["teacher"]
  assert all(x.sharding.mesh == MESH for x in jax.tree.leaves((state, frozen)))
  plan.compile_step(config, MESH)


def test_a_topology_that_cannot_be_is_one_line_with_advice(monkeypatch):
  def refuse(**kwargs):
    raise RuntimeError("libtpu.so not found\nand much more")

  monkeypatch.setattr(plan.topologies, "get_topology_desc", refuse)
  with pytest.raises(ValueError) as error:
    plan.topology_devices("v9:2x2")
  message = str(error.value)
  assert "'v9:2x2'" in message and "libtpu.so not found" in message and "\n" not in message
  assert "cmjax[plan]" in message and "v5p:4x4x4" in message
