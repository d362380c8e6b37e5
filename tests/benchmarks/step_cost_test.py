"""FLOPs of every method against its floor: what is evaluated twice for nothing shows here."""

import functools

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from cmjax import experiment, pages
from cmjax.experiment import methods
from cmjax.program import plan
from helpers import tiny
from helpers.flops import needed

PAGES = [name for name in pages.names() if name.startswith("digits_")]


def configure(loss, *, num_classes=0):
  """A loss and a network so wide that nothing else counts."""
  config = tiny.config().unlock()
  config.loss = ConfigDict(loss)
  config.total_steps = 10_000  # whatever the stages of the page
  config.teacher.workdir = "somewhere"
  config.net = dict(name="mlp", dim=2, width=192, depth=3, embed_channels=16, dtype="float32")
  config.net.num_classes = num_classes
  for part in experiment.parse(config).method.needs:
    config.net[part] = True
  return experiment.parse(config)


def flops(exp):
  """Of the loss and its gradient."""
  net, teacher, key = exp.network, plan.without_inputs(exp.network), jax.random.key(0)
  weights = jax.eval_shape(teacher.init, key)
  state = jax.eval_shape(experiment.state_init(exp), key)
  fixed = {"target": state.ema["target"]} if "target" in state.ema else {}
  batch = {"image": jax.ShapeDtypeStruct((64, 2), jnp.float32)}
  if exp.samples.num_classes:
    batch["label"] = jax.ShapeDtypeStruct((64,), jnp.int32)

  def gradient(params, fixed, weights, batch, key, step):
    loss = exp.method.loss(net, experiment.Frozen((teacher, weights)))
    return jax.grad(lambda p: loss(p | fixed, batch, key, step)[0])(params)

  args = (state.params, fixed, weights, batch, key, jax.ShapeDtypeStruct((), jnp.int32))
  return needed(gradient, *args)


@functools.cache
def diffusion_flops():
  exp = configure(dict(name="diffusion", P_mean=-1.0, P_std=1.4, weighting="learned"))
  return flops(exp) / exp.method.evaluations


def test_every_method_has_a_page():
  assert {pages.load(name).loss.name for name in PAGES} == set(methods.METHODS)


@pytest.mark.parametrize("name", PAGES)
def test_a_step_costs_its_floor_within_5_percent(name):
  page = pages.load(name)
  exp = configure(page.loss.to_dict(), num_classes=3 if page.net.num_classes else 0)
  assert flops(exp) / diffusion_flops() == pytest.approx(exp.method.evaluations, rel=0.05)


@pytest.mark.parametrize("estimator", methods.TANGENTS)
def test_an_estimator_of_the_tangent_costs_its_evaluations(estimator):
  arguments = dict(num_levels=64) if estimator == "discrete" else {}
  loss = dict(pages.load("digits_scd").loss.to_dict(), tangent=dict(name=estimator, **arguments))
  exp = configure(loss)
  assert exp.method.evaluations == 3 + methods.TANGENT_EVALUATIONS[estimator] + 1
  # A derivative in t alone passes by what reads x only: of the layers here, a twentieth of a step.
  assert flops(exp) / diffusion_flops() == pytest.approx(exp.method.evaluations, rel=0.06)


def test_a_tangent_or_a_method_of_ones_own_may_not_know_its_price():
  assert experiment.Method("mine", lambda network, frozen: None).evaluations is None
