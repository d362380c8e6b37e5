"""What is counted is what XLA counts, and, where XLA takes a loop once, what really runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call
from jax.sharding import PartitionSpec as P

from cmjax.base import sharding
from cmjax.experiment import models
from cmjax.program import costs, plan
from helpers import tiny

X, W = np.ones((4, 9, 8, 6), "f"), np.ones((3, 3, 6, 10), "f")


def flops(f, *args, **kwargs):
  return sum(costs.count_flops(jax.make_jaxpr(f)(*args).jaxpr, **kwargs).values())


def flops_by_xla(f, *args):
  return jax.jit(f).lower(*args).cost_analysis()["flops"]


def conv(x, w, **kwargs):
  defaults = dict(window_strides=(1, 1), padding="SAME")
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, w, **(defaults | kwargs), dimension_numbers=numbers)


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"window_strides": (2, 1), "padding": "VALID"},
    {"padding": ((0, 3), (2, -1))},
    {"lhs_dilation": (2, 3), "padding": ((1, 2), (2, 1))},
    {"rhs_dilation": (2, 1)},
  ],
)
def test_convolutions_and_their_gradients_count_as_in_xla(kwargs):
  f = lambda x, w: conv(x, w, **kwargs)
  assert flops(f, X, W) == flops_by_xla(f, X, W) > 0
  _, vjp = jax.vjp(f, X, W)
  y = jax.eval_shape(f, X, W)
  assert flops(vjp, y) == flops_by_xla(vjp, y) > 0


def test_convolutions_in_groups_count_as_in_xla():
  for kwargs, x in (({"feature_group_count": 2}, X), ({"batch_group_count": 2}, X[..., :3])):
    f = lambda x, w, kwargs=kwargs: conv(x, w, **kwargs)
    assert flops(f, x, W[:, :, :3]) == flops_by_xla(f, x, W[:, :, :3]) > 0


def test_products_count_as_in_xla_by_their_dtype():
  f = lambda a, b: jnp.einsum("bij,bkj->bik", a, b)
  a, b = np.ones((3, 5, 7), "f"), np.ones((3, 4, 7), "f")
  assert flops(f, a, b) == flops_by_xla(f, a, b) == 2 * 3 * 5 * 7 * 4
  both = lambda a, b: (f(a, b), f(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)))
  counted = costs.count_flops(jax.make_jaxpr(both)(a, b).jaxpr)
  assert counted == {"float32": 840.0, "bfloat16": 840.0}


def test_a_scan_counts_as_often_as_it_runs():
  w = np.ones((16, 16), "f")
  inner = lambda x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=3)[0]
  outer = lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=5)[0]
  one = 2 * 16**3
  assert flops(outer, w) == 15 * one
  assert flops(outer, w, loops=False) == one
  assert flops_by_xla(outer, w) < 2 * one  # which is why they are counted here


def test_what_is_there_for_derivatives_alone_is_not_counted():
  w = np.ones((8, 8), "f")
  one = 2 * 8**3
  linear = lambda x: linear_call(lambda w, x: x @ w, lambda w, y: y @ w.T, w, x)
  assert flops(linear, w) == one

  @jax.custom_vjp
  def with_rule(x):
    return x @ w

  with_rule.defvjp(lambda x: (with_rule(x), x), lambda x, y: (y @ w.T @ w,))
  assert flops(with_rule, w) == one
  assert flops(jax.grad(lambda x: with_rule(x).sum()), w) == 3 * one
  again = jax.grad(lambda x: jnp.sin(jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x)).sum())
  assert flops(again, w) == 5 * one  # forward 2, the first product again, backward 2
  branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
  assert flops(branch, w) == 2 * one


@pytest.mark.devices
def test_inside_a_shard_map_each_device_counts():
  mesh = sharding.make_mesh(2, 4)
  w = np.ones((8, 8), "f")
  spec = P(("data", "fsdp"))
  f = jax.shard_map(lambda x: x @ w, mesh=mesh, in_specs=spec, out_specs=spec)
  assert flops(f, np.ones((16, 8), "f")) == 2 * 16 * 8 * 8


def test_a_whole_step_counts_as_in_xla():
  given = tiny.experiment_of(**{"net.width": 64, "batch_size": 64})
  traced = plan.trace_step(given, sharding.make_mesh())
  counted = sum(costs.count_flops(traced.jaxpr.jaxpr).values())
  by_xla = traced.lower().cost_analysis()["flops"]  # with all that works number by number
  assert 0.85 < counted / by_xla < 1.0


def test_a_network_of_scanned_blocks_counts_like_the_same_network_without():
  def counted(scan):
    net = dict(
      name="dit", resolution=8, in_channels=1, patch=2, size=None, width=32, depth=3, num_heads=2,
      scan=scan, dtype="float32",
    )  # fmt: skip
    net = models.network(net, 0.5)
    params = jax.eval_shape(net.init, jax.random.key(0))
    x, t = jnp.ones((4, 8, 8, 1)), jnp.ones(4)
    gradient = jax.grad(lambda params: net.apply(params, x, t, {}, None).sum())
    jaxpr = jax.make_jaxpr(gradient)(params).jaxpr
    return [sum(costs.count_flops(jaxpr, loops=loops).values()) for loops in (True, False)]

  plain, scanned = counted(False), counted(True)
  assert plain[0] == plain[1]
  assert scanned[0] == pytest.approx(plain[0], rel=0.02)
  assert scanned[1] < 0.7 * scanned[0]


@pytest.mark.devices
def test_collectives_are_counted_by_kind_times_the_trips_of_their_loop():
  mesh = sharding.make_mesh(2, 4)
  axes, n, ring = ("data", "fsdp"), 8, [(i, (i + 1) % 4) for i in range(4)]

  def body(x, _):
    x = jax.lax.psum(x, axes) * 0.5  # f32[1024] on each
    y = jax.lax.all_gather(x, axes)  # f32[8, 1024]
    y = jax.lax.psum_scatter(jnp.sin(y), axes)  # back to f32[1024]
    y = jax.lax.ppermute(jnp.cos(y), "fsdp", ring)
    y = jax.lax.all_to_all(jnp.sin(y).reshape(n, -1), axes, 0, 0).reshape(-1)
    return jnp.sin(y), None

  def f(x):
    return jax.lax.scan(body, x, None, length=3)[0]

  g = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P(axes), out_specs=P(axes), check_vma=False))
  text = g.lower(jax.ShapeDtypeStruct((8 * 1024,), jnp.float32)).compile().as_text()
  size, share = 4096.0, 7 / 8
  assert costs.count_collectives(text, n) == {
    "all-reduce": (3, 3 * size, 3 * 2 * size * share),
    "all-gather": (3, 3 * 8 * size, 3 * 8 * size * share),
    "reduce-scatter": (3, 3 * 8 * size, 3 * 8 * size * share),
    "collective-permute": (3, 3 * size, 3 * size),
    "all-to-all": (3, 3 * size, 3 * size * share),
  }


TPU_TEXT = """HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input.1: f32[64,32]) -> f32[16,32] {
  %all-reduce.7 = f32[64,32]{1,0:T(8,128)} all-reduce(%input.1), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
  ROOT %slice = f32[16,32]{1,0} dynamic-slice(%all-reduce.7, %i, %zero), dynamic_slice_sizes={16,32}
}

%body (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %gather = (bf16[8]{0}, bf16[32]{0:T(256)S(1)}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %next = (s32[], bf16[8]{0}) tuple(%i, %y)
}

%condition (p.1: (s32[], bf16[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%unused (q: f32[4]) -> f32[4] {
  ROOT %never = f32[4]{0} all-reduce(%q), replica_groups={}, to_apply=%add.1
}

ENTRY %main.1 (arg: f32[64,32]) -> (s32[], bf16[8]) {
  %scattered = f32[16,32]{1,0} fusion(%arg), kind=kCustom, calls=%all-reduce-scatter.1
  %two = (f32[10]{0}, f32[6]{0}) all-reduce(%u, %v), replica_groups={}, to_apply=%add.1
  %passed = (f32[4]{0}, f32[4]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  ROOT %loop = (s32[], bf16[8]{0}) while(%init), condition=%condition, body=%body
}
"""  # noqa: E501


def test_the_forms_of_the_tpu_compiler_are_read():
  assert costs.count_collectives(TPU_TEXT, 8) == {
    "all-reduce": (1, 64.0, 2 * 64 * 7 / 8),
    "reduce-scatter": (1, 8192.0, 8192 * 3 / 4),
    "all-gather": (6, 6 * 64.0, 6 * 48.0),
    "collective-permute": (1, 16.0, 16.0),
  }
  known = TPU_TEXT.replace("body=%body\n", 'body=%body, {"known_trip_count":{"n":"9"}}\n')
  assert costs.count_collectives(known, 8)["all-gather"].number == 9


def test_the_slowest_part_of_a_step_is_found_by_the_peaks_of_the_chip():
  a100 = costs.CHIPS["a100"]
  parts = lambda n: costs.seconds(
    a100, flops={"bfloat16": 312e12, "float32": 312e12}, moved=2039e9, sent=300e9, num_chips=n
  )
  assert parts(8) == {"flops": 3.0, "memory": 1.0, "links": 1.0}  # float32 at half the rate
  assert parts(16)["links"] == 12.0  # over the network


def test_what_a_refused_program_wanted_is_read_off_the_message():
  message = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 120.50G of 95.74G hbm. Exceeded hbm capacity by 24.76G."
  )
  assert costs.wanted_memory(message) == 120.5 * 2**30
  assert costs.wanted_memory("RESOURCE_EXHAUSTED: no luck") is None
