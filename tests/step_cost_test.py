"""FLOPs of the steps, which are what the reuse of the jvp's primal decides."""

import functools

import jax
import jax.numpy as jnp
import pytest

from cmjax import networks, times, weighting
from cmjax.losses import continuous, diffusion


def flops(loss_fn, params):
  grad = jax.jit(jax.grad(loss_fn, has_aux=True))
  args = (params, {"image": jnp.zeros((64, 2))}, jax.random.key(0), jnp.int32(1))
  return grad.lower(*args).compile().cost_analysis()["flops"]


def test_sct_costs_4_and_scd_5_where_a_diffusion_step_costs_3():
  net = networks.as_network(functools.partial(networks.MLP, dim=2, width=128, depth=3))
  weight, sample_t = weighting.constant(), times.lognormal(-1.0, 1.4, sigma_data=0.5)
  params = {"net": net.init(jax.random.key(0)), "weighting": {}}
  teacher = continuous.teacher_velocity(net, net.init(jax.random.key(1)), sigma_data=0.5)
  base = flops(diffusion.loss(net, sample_t, weight, sigma_data=0.5), params)
  make = functools.partial(continuous.loss, net)
  sct = flops(make(continuous.data_velocity(), sample_t, weight, sigma_data=0.5), params)
  scd = flops(make(teacher, sample_t, weight, sigma_data=0.5), params)
  assert sct / base == pytest.approx(4 / 3, abs=0.07)
  assert scd / base == pytest.approx(5 / 3, abs=0.085)
