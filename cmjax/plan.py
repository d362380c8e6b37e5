"""The train step compiled ahead of time, for devices that need not be there."""

from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import build, sharding, train
from cmjax.build import sections
from cmjax.types import Network


def topology_devices(topology: str) -> list[Any]:
  """The chips of a TPU topology such as v5e:2x2 or v5p:4x4x4, none of which need exist.

  Raises:
    ValueError: where libtpu is missing, or knows no such topology.
  """
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  except Exception as error:  # of libtpu, in many types
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"topology {topology!r} cannot be compiled for: {reason} It needs libtpu "
      "(pip install 'cmjax[plan]'), and a name like v5e:2x2 or v5p:4x4x4."
    ) from error


def teacher_network(config: ConfigDict) -> Network | None:
  """The network that a method distils, where no run is read; None if it has no teacher.

  It is the student's, without the inputs that only a student has.
  """
  if not config.teacher.workdir:
    return None
  config = config.copy_and_resolve_references()
  config.net.update(guidance=False, segment=False)
  return build.network(config)


def abstract_arguments(config: ConfigDict, mesh: Mesh) -> tuple[Any, ...]:
  """(state, batch, key, frozen) of the train step: shapes and shardings, no arrays."""
  net, teacher, key = build.network(config), teacher_network(config), jax.random.key(0)
  placed = lambda tree, shardings: jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
  split = lambda tree: placed(tree, sharding.shard_params(tree, mesh))
  state = split(jax.eval_shape(build.state_init(config, net), key))
  weights = split(jax.eval_shape(teacher.init, key)) if teacher else None
  shape = (config.batch_size, *sections.sample_shape(config))
  batch = {"image": jax.ShapeDtypeStruct(shape, np.float32)}
  if config.net.get("num_classes", 0):
    batch["label"] = jax.ShapeDtypeStruct(shape[:1], np.int32)
  batch = placed(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
  key = placed(jax.eval_shape(lambda: key), sharding.replicated(mesh))
  return state, batch, key, {"teacher": weights, "lpips": None}


def compile_step(config: ConfigDict, mesh: Mesh) -> Any:
  """The train step of a config, compiled for the devices of `mesh`; donates the state, as in use.

  Ask its `memory_analysis()` and `cost_analysis()`: both are of one device.
  """
  net, teacher = build.network(config), teacher_network(config)
  arguments = abstract_arguments(config, mesh)
  step = train.make_step_fn(config, net, teacher, arguments[-1])
  return train.compile_step(step, mesh, arguments)
