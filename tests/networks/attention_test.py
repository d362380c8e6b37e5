"""Attention: every implementation against plain attention, in value and in every derivative."""

import functools
import importlib.util
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cmjax import tangent
from cmjax.networks import attention_kernels as kernels
from cmjax.networks.attention import attend, attention, choose
from cmjax.program import plan

LEAN = ("blockwise", "two_path", "pallas")
OWN = ("blockwise", "pallas")  # without a fused kernel here, two_path is blockwise
ROOT = pathlib.Path(__file__).parents[2]


def arrays(count, shape=(2, 11, 2, 8), seed=0, scale=1.0):
  draws = np.random.default_rng(seed).normal(size=(count, *shape), scale=scale)
  return [jnp.asarray(a, jnp.float32) for a in draws]


def plain(q, k, v):
  scores = np.einsum("bqnc,bknc->bnqk", q, k) / np.sqrt(q.shape[-1])
  p = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum("bnqk,bknc->bqnc", p / p.sum(-1, keepdims=True), v)


def exact(q, k, v, dq, dk, dv, g):
  """Output, tangent and gradients in float64, by hand."""
  q, k, v, dq, dk, dv, g = (np.asarray(a, np.float64) for a in (q, k, v, dq, dk, dv, g))
  scale = 1 / np.sqrt(q.shape[-1])
  scores = scale * np.einsum("bqnc,bknc->bnqk", q, k)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dx = scale * (np.einsum("bqnc,bknc->bnqk", dq, k) + np.einsum("bqnc,bknc->bnqk", q, dk))
  dp = p * (dx - np.sum(p * dx, -1, keepdims=True))
  mix = lambda p, v: np.einsum("bnqk,bknc->bqnc", p, v)
  gp = np.einsum("bqnc,bknc->bnqk", g, v)
  gx = scale * p * (gp - np.sum(p * gp, -1, keepdims=True))
  over_queries = lambda p, g: np.einsum("bnqk,bqnc->bknc", p, g)
  gradients = mix(gx, k), over_queries(gx, q), over_queries(p, g)
  return mix(p, v), mix(dp, v) + mix(p, dv), gradients


def assert_close(actual, expected, tol=1e-5):
  """Each array to `tol` of its largest number, or of 1 if that is more."""

  def compare(a, b):
    atol = tol * max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=atol)

  jax.tree.map(compare, actual, expected)


def derivatives(name, q, k, v, dq, dk, dv, g, block=4):
  f = functools.partial(attention, implementation=name, block=block)
  y, dy = jax.jvp(f, (q, k, v), (dq, dk, dv))
  return y, dy, jax.vjp(f, q, k, v)[1](g)


@pytest.mark.parametrize("name", ("xla", *LEAN))
def test_output_tangent_and_gradient_are_those_of_plain_attention_at_an_odd_length(name):
  q, k, *rest = arrays(7)
  # The same for all keys, so no softmax feels it; but a padded key, with score 0, would win many.
  given = (q, k - 3, *rest)
  assert_close(jax.jit(functools.partial(derivatives, name))(*given), exact(*given))


@pytest.mark.parametrize("name", OWN)
def test_in_bfloat16_the_sums_are_in_float32(name):
  given = [a.astype(jnp.bfloat16) for a in arrays(7, (1, 70, 1, 8))]
  actual = jax.jit(functools.partial(derivatives, name, block=8))(*given)
  assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(actual))
  # Nothing but the rounding of what comes out, to 8 bits.
  assert_close(actual, exact(*given), tol=2.0**-8)


@pytest.mark.parametrize("name", ["blockwise", pytest.param("xla", marks=pytest.mark.slow)])
def test_float64_stays_exact(name):
  with jax.enable_x64(True):
    given = [jnp.asarray(a, jnp.float64) for a in arrays(7)]
    assert_close(jax.jit(functools.partial(derivatives, name))(*given), exact(*given), tol=1e-13)


@pytest.mark.parametrize("name", ["blockwise", pytest.param("pallas", marks=pytest.mark.slow)])
def test_extreme_scores_stay_finite(name):
  # Whole numbers and 16 channels: scores up to 1e5, exact in float32, most of their exponentials 0.
  draw = np.random.default_rng(0).integers
  q, k = jnp.asarray(draw(-100, 100, (2, 2, 11, 2, 16)), jnp.float32)
  given = (q, k, *arrays(5, (2, 11, 2, 16)))
  actual = jax.jit(functools.partial(derivatives, name))(*given)
  assert abs(q[0, 0, 0] @ k[0, :, 0].T).max() > 1e4
  # p is e^(x - lse), and lse of 1e4 is rounded to 1e-3.
  assert_close(actual, exact(*given), tol=1e-4)


def test_all_blocks_give_the_same():
  given = arrays(7)
  run = lambda block: derivatives("blockwise", *given, block=block)
  for actual in jax.jit(lambda: [run(block) for block in (1, 64)])():
    assert_close(actual, exact(*given))


def layers(attention, weights, x, *, scan, remat):
  """Two residual layers of attention, weights [2, m, 3 m]."""

  def layer(x, w):
    qkv = (x @ w).reshape(*x.shape[:2], 2, x.shape[-1] // 2, 3)
    return x + attention(qkv), None

  layer = jax.checkpoint(layer) if remat else layer
  if scan:
    return jax.lax.scan(layer, x, weights)[0]
  for w in weights:
    x, _ = layer(x, w)
  return x


def scm_gradient(attention, weights, x, dxdt, t, *, scan=False, remat=False):
  """The gradient of a loss on the primal of a jvp, its tangent stopped: sCM's."""

  def loss(weights):
    net = lambda x, t: layers(
      attention, weights, x * (1 + t[:, None, None]), scan=scan, remat=remat
    )
    F, g = tangent.tangent(net, x, t, dxdt, sigma_data=0.5)
    return jnp.sum((F - jax.lax.stop_gradient(F) - tangent.normalize(g)) ** 2)

  return jax.grad(loss)(weights)


def scm_arguments(b=2):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return 0.2 * draw(2, 8, 24), draw(b, 11, 8), draw(b, 11, 8), jnp.linspace(0.2, 1.3, b)


@functools.cache
def scm_expected(b=2):
  attention = functools.partial(attend, implementation="xla")
  return jax.jit(functools.partial(scm_gradient, attention))(*scm_arguments(b))


@pytest.mark.parametrize(
  "name, form",
  [
    pytest.param("blockwise", "plain", marks=pytest.mark.slow),
    ("blockwise", "scan of rematerialised layers"),
    ("pallas", "scan of rematerialised layers"),
    pytest.param("pallas", "plain", marks=pytest.mark.slow),
    pytest.param("two_path", "scan of rematerialised layers", marks=pytest.mark.slow),
  ],
)
def test_the_gradient_of_a_consistency_loss_is_that_of_plain_attention(name, form):
  scan = remat = form != "plain"
  ours = functools.partial(attend, implementation=name, block=4)
  gradient = jax.jit(functools.partial(scm_gradient, ours, scan=scan, remat=remat))
  assert_close(gradient(*scm_arguments()), scm_expected())


def test_a_stopped_tangent_costs_the_gradient_nothing():
  q, k, v, dq, dk, dv, _ = arrays(7, (1, 256, 1, 64))
  f = functools.partial(attention, implementation="blockwise", block=256)

  def value(q, k, v):
    y, dy = jax.jvp(f, (q, k, v), (dq, dk, dv))
    return jnp.sum(y * jax.lax.stop_gradient(jnp.sin(dy)))

  flops = lambda f: jax.jit(f).lower(q, k, v).compile().cost_analysis()["flops"]
  product = 2 * 256 * 256 * 64
  # Products as large as the scores': they and 1 forward, 4 for the tangent, 4 for the gradient. In
  # a single block the compiler makes the scores once.
  assert flops(jax.grad(value, (0, 1, 2))) == pytest.approx(10 * product, rel=0.04)


@pytest.mark.devices
@pytest.mark.parametrize("name", [*OWN, pytest.param("two_path", marks=pytest.mark.slow)])
def test_the_batch_may_be_sharded(name):
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  weights, *rest = scm_arguments(8)
  rest = jax.device_put(rest, split)
  ours = functools.partial(attend, implementation=name, block=8)
  with jax.set_mesh(mesh):
    compiled = jax.jit(functools.partial(scm_gradient, ours)).lower(weights, *rest).compile()
  assert_close(compiled(weights, *rest), scm_expected(8))
  assert "all-gather" not in compiled.as_text()


def test_a_second_derivative_is_not_a_number_where_it_would_not_be_zero():
  q, k, v, dq, dk, dv, g = arrays(7)
  f = functools.partial(attention, implementation="blockwise", block=4)
  first = jnp.arange(2) == 0  # only the first sample's tangent or gradient is looked at

  def of_tangent(q):
    dy = jax.jvp(f, (q, k, v), (dq, dk, dv))[1]
    return jnp.sum(jnp.where(first[:, None, None, None], dy, 0))

  def of_gradient(q):
    return jax.grad(lambda q: jnp.sum(jnp.where(first[:, None, None, None], f(q, k, v) * g, 0)))(q)

  @jax.jit
  def seconds(q):
    forward = [jax.jvp(f, (q,), (dq,))[1] for f in (of_tangent, of_gradient)]
    return jax.grad(of_tangent)(q), *forward

  reverse, forward, hessian = seconds(q)
  assert np.isnan(reverse[0]).all() and not np.any(reverse[1])
  assert np.isnan(forward)
  assert np.isnan(hessian[0]).all()


def test_xla_has_second_derivatives():
  q, k, v, dq, dk, dv, _ = arrays(7, (1, 3, 1, 4))
  tangent_of = lambda f, q: jnp.sum(jax.jvp(f, (q, k, v), (dq, dk, dv))[1])
  f = functools.partial(attention, implementation="xla")
  gradient = jax.jit(jax.grad(functools.partial(tangent_of, f)))(q)
  h = 1e-4
  both = [exact(q + sign * h * dq, k, v, dq, dk, dv, dq)[1].sum() for sign in (1, -1)]
  assert float(jnp.sum(gradient * dq)) == pytest.approx((both[0] - both[1]) / (2 * h), rel=5e-3)


@pytest.mark.parametrize("shell", ("looped", pytest.param("streamed", marks=pytest.mark.slow)))
def test_the_kernels_of_both_kinds_of_hardware_agree_with_plain_attention(shell):
  given = q, k, v, *_, g = arrays(7, (1, 40, 2, 16))
  shell = functools.partial(getattr(kernels, f"_{shell}"), interpret=True)

  @jax.jit
  def run(*given):
    y, dy = kernels._forward_and_tangent(shell, 16, *given[:6])
    alone, lse = kernels._forward(shell, 16, q, k, v)
    return y, alone, lse, dy, kernels._backward(shell, 16, q, k, v, alone, lse, g)

  y, alone, lse, dy, gradients = run(*given)
  expected = exact(*given)
  assert_close((y, dy, gradients), expected)
  assert_close(alone, expected[0])
  scores = np.einsum("bqnc,bknc->bnqk", *(np.asarray(a, np.float64) for a in (q, k))) / 4
  assert_close(lse, np.log(np.exp(scores).sum(-1)))


def test_the_choice_goes_by_length():
  assert [choose(s, jnp.float32) for s in (1, 256, 1024, 1025)] == ["xla"] * 3 + ["blockwise"]


def test_a_bad_argument_is_named():
  q, k, v = arrays(3)
  with pytest.raises(ValueError, match="Unknown attention 'flash'.*auto, xla, blockwise"):
    attention(q, k, v, implementation="flash")
  with pytest.raises(ValueError, match=r"q float32\[2, 11, 2, 8\], k float32\[2, 10, 2, 8\]"):
    attention(q, k[:, 1:], v)
  with pytest.raises(ValueError, match="v bfloat16"):
    attention(q, k, v.astype(jnp.bfloat16))
  with pytest.raises(ValueError, match="floating-point"):
    attention(*(a.astype(jnp.int32) for a in (q, k, v)))
  with pytest.raises(ValueError, match="block=0 must be at least 1"):
    attention(q, k, v, implementation="blockwise", block=0)


def test_vmap_of_a_derivative_is_refused():
  q, k, v = arrays(3)
  loss = lambda q, k, v: jnp.sum(attention(q, k, v, implementation="blockwise", block=4))
  stacked = [a[:, None] for a in (q, k, v)]
  with pytest.raises(NotImplementedError, match="linear_call"):
    jax.eval_shape(jax.vmap(jax.grad(loss)), *stacked)


benchmark = functools.cache(
  lambda: runpy.run_path(str(ROOT / "benchmarks" / "cost" / "attention.py"), run_name="benchmark")
)


def test_at_8192_pixels_blockwise_needs_less_than_a_tenth_of_the_memory_of_full_attention():
  compiled = (benchmark()["compile_step"](name, 8192, heads=1) for name in ("blockwise", "xla"))
  memory = [c.memory_analysis().temp_size_in_bytes for c in compiled]
  assert memory[0] < memory[1] / 10


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'cmjax[plan]'"
)
@pytest.mark.parametrize("name", ("pallas", "two_path"))
def test_the_kernels_compile_for_a_tpu(name):
  devices = plan.topology_devices("v5e:2x2")
  compiled = benchmark()["compile_step"](name, 1000, dtype="bfloat16", devices=devices)
  assert "tpu_custom_call" in compiled.as_text()
  # A matrix of scores would be 30.5 MiB per head.
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * 30.5 * 2**20
