"""FLOPs of every method against its floor: what is evaluated twice for nothing shows here."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from cmjax import experiment
from helpers import tiny
from helpers.losses import LOSSES, SCM

FLOOR = runpy.run_path(
  str(pathlib.Path(__file__).parents[2] / "benchmarks" / "cost" / "step_cost.py"), run_name="floors"
)["FLOOR"]
LABELLED = dict(name="scd", guidance=(1.0, 2.0), **SCM)


def flops(name, section):
  """Of the loss and its gradient; the network is so wide that nothing else counts."""
  config = tiny.config().unlock()
  config.loss = ConfigDict(section)
  config.net = dict(name="mlp", dim=2, width=192, depth=3, embed_channels=16, dtype="float32")
  if name == "scd_guided":
    config.net.num_classes = 3
  teacher = experiment.network(config)
  config.net.update(guidance=name == "scd_guided", segment=name == "scd_multistep")
  net, key = experiment.network(config), jax.random.key(0)
  weights = jax.eval_shape(teacher.init, key)
  state = jax.eval_shape(experiment.state_init(config, net), key)
  fixed = {"target": state.ema["target"]} if "target" in state.ema else {}
  batch = {"image": jax.ShapeDtypeStruct((64, 2), jnp.float32)}
  if name == "scd_guided":
    batch["label"] = jax.ShapeDtypeStruct((64,), jnp.int32)

  def gradient(params, fixed, weights, batch, key, step):
    loss = experiment.loss(config, net, (teacher, weights))
    return jax.grad(lambda p: loss(p | fixed, batch, key, step)[0])(params)

  args = (state.params, fixed, weights, batch, key, jax.ShapeDtypeStruct((), jnp.int32))
  return jax.jit(gradient).lower(*args).compile().cost_analysis()["flops"]


@functools.cache
def diffusion_flops():
  return flops("teacher", dict(name="diffusion", P_mean=-1.0, P_std=1.4, weighting="learned"))


CASES = {name: LOSSES[name] for name in FLOOR if name in LOSSES} | {
  "sct": dict(name="sct", **SCM),
  "scd": dict(name="scd", **SCM),
  "scd_guided": LABELLED,
  "cd_continuous": LOSSES["cd_continuous"]
  | dict(distance=dict(name="squared_l2"), stop_gradient=True),
}


def test_every_method_has_a_floor_and_a_case():
  assert set(CASES) | {"teacher"} == set(FLOOR)


@pytest.mark.parametrize("name", CASES)
def test_a_step_costs_its_floor_within_5_percent(name):
  ratio = flops(name, CASES[name]) / diffusion_flops()
  assert ratio == pytest.approx(FLOOR[name] / FLOOR["teacher"], rel=0.05)
