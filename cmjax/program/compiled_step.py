"""The train step of a config as a program: put together, traced and compiled for a mesh."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import experiment
from cmjax.program import costs
from cmjax.training import microbatch
from cmjax.training.step import make_train_step, several
from cmjax.types import LossFn, Network, Params

logger = logging.getLogger("cmjax")


def make_step_fn(
  config: ConfigDict, net: Network, teacher: Network | None, frozen: Params
) -> Callable[..., Any]:
  """(state, batch, key, frozen) -> (state, metrics); with steps_per_dispatch n, of n batches.

  `frozen` are the weights that are used and not trained: {teacher: ..., lpips: ...}, None where
  there is none. They are an argument: closed over, they would be constants of the program, kept
  twice and compiled for minutes.
  """
  tx, decays, target = (
    experiment.optimizer(config),
    experiment.ema_decays(config),
    experiment.target_name(config),
  )
  options = {"target": target, "loss_scale": experiment.loss_scale(config)}
  # On how many devices is asked where they are known.
  options["num_parts"] = microbatch.check(config.batch_size, config.get("microbatch"), 1)

  def step_fn(state, batch, key, frozen):
    loss_fn = make_loss(config, net, teacher, frozen)
    return make_train_step(loss_fn, tx, decays, **options)(state, batch, key)

  make_loss(config, net, teacher, frozen)  # a wrong section of the config is found at the door
  return several(step_fn) if config.get("steps_per_dispatch", 1) > 1 else step_fn


def make_loss(config: ConfigDict, net: Network, teacher: Network | None, frozen: Params) -> LossFn:
  """The loss of a config; `frozen` as in `make_step_fn`."""
  model = (teacher, frozen["teacher"]) if teacher else None
  return experiment.loss(config, net, model, frozen["lpips"])


def trace(step_fn: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...]) -> Any:
  """The step traced for (state, batch, key, frozen) on the devices of `mesh`; donates the state.

  The arguments are arrays, or `jax.ShapeDtypeStruct`s with their shardings.
  """
  shardings = jax.tree.map(lambda x: x.sharding, arguments[0])
  jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))
  with jax.set_mesh(mesh):  # kernels of attention have to know what to be split over
    return jitted.trace(*arguments)


def compile_traced(traced: Any, mesh: Mesh, options: dict[str, Any] | None = None) -> Any:
  """What `trace` gave, compiled; with options of XLA's, such as optimization_level."""
  with jax.set_mesh(mesh):
    return traced.lower().compile(options)


def compile_step(step_fn: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...]) -> Any:
  """The step, compiled ahead of time once, with its price in the log; `trace`'s arguments."""
  start = time.perf_counter()
  traced = trace(step_fn, mesh, arguments)
  compiled = compile_traced(traced, mesh)
  memory = compiled.memory_analysis()
  logger.info(
    "Compiled the train step in %.0f s: %.1f GFLOP a step, %.0f MB of temporary memory, "
    "%.2f M parameters.",
    time.perf_counter() - start,
    sum(costs.count_flops(traced.jaxpr.jaxpr).values()) / 1e9,  # XLA counts a loop as one turn
    memory.temp_size_in_bytes / 1e6 if memory else 0,
    sum(x.size for x in jax.tree.leaves(arguments[0].params)) / 1e6,
  )
  return compiled
