"""The train step of an experiment as a program: put together, traced and compiled for a mesh."""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.experiment import Experiment, Frozen
from cmjax.program import costs
from cmjax.training import microbatch
from cmjax.training.step import make_train_step, several
from cmjax.types import LossFn, Network, Params

logger = logging.getLogger("cmjax")


class CompiledStep(NamedTuple):
  """The train step, ready to run.

  Attributes:
    program: (state, batch, key, frozen) -> (state, metrics); donates the state.
    flops: of one call, over all devices, as the step is written: with what remat computes again.
  """

  program: Callable[..., Any]
  flops: float


def make_step_fn(
  exp: Experiment,
  tx: optax.GradientTransformation,
  teacher: Network | None = None,
) -> Callable[..., Any]:
  """(state, batch, key, frozen) -> (state, metrics); with steps_per_dispatch n, of n batches.

  `frozen` are the weights that are used and not trained: {teacher: ..., lpips: ...}, None where
  there is none. They are an argument: closed over, they would be constants of the program, kept
  twice and compiled for minutes.

  Args:
    exp: the experiment.
    tx: its `experiment.transformation`.
    teacher: the network of the frozen teacher.
  """
  run = exp.run
  step_options: dict[str, Any] = {
    "target": experiment.target_name(exp),
    "loss_scale": run.loss_scale,
    "num_parts": microbatch.check(run.batch_size, run.microbatch, 1),
  }
  decays = experiment.decays(exp)

  def step_fn(state, batch, key, frozen):
    loss_fn = make_loss(exp, teacher, frozen)
    return make_train_step(loss_fn, tx, decays, **step_options)(state, batch, key)

  return several(step_fn) if run.steps_per_dispatch > 1 else step_fn


def make_loss(exp: Experiment, teacher: Network | None, frozen: Params) -> LossFn:
  """The loss of an experiment; `frozen` as in `make_step_fn`."""
  model = (teacher, frozen["teacher"]) if teacher else None
  return exp.method.loss(exp.network, Frozen(model, frozen["lpips"]))


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


def compile_step(
  step_fn: Callable[..., Any],
  mesh: Mesh,
  arguments: tuple[Any, ...],
  options: dict[str, Any] | None = None,
) -> CompiledStep:
  """The step, compiled ahead of time once, with its price in the log.

  Args:
    step_fn: of `make_step_fn`.
    mesh: as for `trace`.
    arguments: as for `trace`.
    options: as for `compile_traced`.
  """
  start = time.perf_counter()
  traced = trace(step_fn, mesh, arguments)
  compiled = compile_traced(traced, mesh, options)
  flops = sum(costs.count_flops(traced.jaxpr.jaxpr).values())
  memory = compiled.memory_analysis()
  logger.info(
    "Compiled the train step in %.0f s: %.1f GFLOP a step, %.0f MB of temporary memory, "
    "%.2f M parameters.",
    time.perf_counter() - start,
    flops / 1e9,  # XLA counts a loop as one turn
    memory.temp_size_in_bytes / 1e6 if memory else 0,
    sum(x.size for x in jax.tree.leaves(arguments[0].params)) / 1e6,
  )
  return CompiledStep(compiled, flops)
