import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.networks import DiT, dit, from_nnx, grow

SMALL = dict(
  resolution=4, in_channels=2, patch=2, size=None, depth=2, width=16, num_heads=2,
  embed_channels=8, num_classes=3, dropout=0.2,
)  # fmt: skip
small = functools.partial(DiT, **SMALL)


def paths(params):
  flat = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in flat}


def shaken(make, scale=0.2):
  """Parameters that are all different from 0, as after some training."""
  shapes = jax.eval_shape(from_nnx(make).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), jnp.float32), shapes)


def inputs(b=3, dtype=np.float32):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(b, 4, 4, 2)), dtype)
  return x, jnp.linspace(0.1, 1.5, b, dtype=dtype), {"label": jnp.arange(b) % 3}


@functools.cache
def built():
  """The small network in float32 with its apply compiled, and shaken parameters."""
  net = from_nnx(small)
  return net._replace(apply=jax.jit(net.apply)), shaken(small)


@functools.cache
def told():
  """The small network with guidance and segment, its apply compiled."""
  net = from_nnx(functools.partial(small, guidance=True, segment=True))
  return net._replace(apply=jax.jit(net.apply))


@functools.cache
def fresh(scan):
  """Its initial parameters."""
  make = functools.partial(small, guidance=True, segment=True, scan=scan)
  return from_nnx(make).init(jax.random.key(0))  # not compiled: the draws are shared, and faster


# --- the published networks ---------------------------------------------------------------------


# Published are the numbers with the variance, 1000 classes and 256 positions, which DiT stores
# though they are fixed: 33, 130, 458 and 675 million.
@pytest.mark.parametrize(
  ("size", "published"),
  [("S", 32_963_360), ("B", 130_512_416), ("L", 458_102_816), ("XL", 675_129_632)],
)
def test_dit_has_as_many_parameters_as_published(size, published):
  def count(learn_sigma):
    module = nnx.eval_shape(
      lambda: DiT(size=size, num_classes=1000, learn_sigma=learn_sigma, rngs=nnx.Rngs(0))
    )
    return sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.state(module, nnx.Param)))

  width = dit.SIZES[size][1]
  assert count(True) == published - 256 * width
  # Half of the last layer is the variance: four pixels of four channels, with their biases.
  assert count(False) == published - 256 * width - 16 * (width + 1)


def test_scan_has_the_same_parameters_stacked():
  plain, stacked = fresh(scan=False), fresh(scan=True)
  assert paths(plain)["blocks/block1/affine/kernel"].shape == (16, 96)
  assert paths(stacked)["blocks/affine/kernel"].shape == (2, 16, 96)
  jax.tree.map(np.testing.assert_array_equal, dit.stack(plain), stacked)
  jax.tree.map(np.testing.assert_array_equal, dit.unstack(stacked), plain)
  assert jax.tree.structure(dit.unstack(stacked)) == jax.tree.structure(plain)


def test_positions_are_sines_and_cosines_of_column_and_row():
  p = dit.positions(3, 8)
  assert p.shape == (9, 8)
  row, column = 2, 1
  angles = lambda n: [math.sin(n), math.sin(n / 100), math.cos(n), math.cos(n / 100)]
  np.testing.assert_allclose(p[3 * row + column], angles(column) + angles(row))


def test_image_of_patches_is_the_image():
  x = jnp.arange(2 * 6 * 6 * 3, dtype=jnp.float32).reshape(2, 6, 6, 3)
  p = dit.patches(x, 2)
  assert p.shape == (2, 9, 12)
  np.testing.assert_array_equal(p[1, 5], x[1, 2:4, 4:6].reshape(-1))
  np.testing.assert_array_equal(dit.image(p, 2), x)


# --- laws of every network ----------------------------------------------------------------------


@pytest.mark.parametrize("modulation", sorted(dit.MODULATIONS))
def test_branches_of_a_block_are_zero_at_the_start(modulation):
  block = dit.DiTBlock(
    16, 2, 32, modulation=modulation, qk_norm="none", attention="xla", dropout=0.0, rngs=nnx.Rngs(0)
  )
  rng = np.random.default_rng(0)
  x, e = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((2, 4, 16), (2, 16)))
  np.testing.assert_array_equal(jax.jit(lambda x: block(x, e, None))(x), x)
  each = dit.MODULATIONS[modulation] + 1
  kernel = np.asarray(block.affine.kernel[...]).reshape(16, 2, each, 16)
  assert not np.any(kernel[:, :, -1])
  bounded = modulation != "scale_shift"
  assert all(np.any(kernel[:, i, j]) == bounded for i in range(2) for j in range(each - 1))


def test_output_is_zero_at_the_start_and_not_later():
  net, params = built()
  start = {name: a for name, a in fresh(scan=False).items() if name in params}
  assert not np.any(net.apply(start, *inputs(), None))
  assert np.std(net.apply(params, *inputs(), None)) > 0.01


def test_dropout_is_a_function_of_the_key():
  net, params = built()
  F = lambda key: np.asarray(net.apply(params, *inputs(), key))
  np.testing.assert_array_equal(F(jax.random.key(1)), F(jax.random.key(1)))
  assert np.any(F(jax.random.key(1)) != F(jax.random.key(2)))
  assert np.any(F(jax.random.key(1)) != F(None))


def test_label_changes_the_output_and_none_has_a_row_of_its_own():
  net, params = built()
  x, t, _ = inputs()
  F = lambda i, p=params: np.asarray(net.apply(p, x, t, {"label": jnp.full(3, i)}, None))
  assert np.abs(F(-1) - F(0)).max() > 1e-3 and np.abs(F(0) - F(1)).max() > 1e-3
  np.testing.assert_array_equal(F(-1), F(7))
  table = params["map_label"]["kernel"]
  as_none = params | {"map_label": {"kernel": table.at[3].set(table[1])}}
  np.testing.assert_allclose(F(-1, as_none), F(1), rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_do_not_see_each_other_and_tokens_do():
  net, params = built()
  x, t, cond = inputs()
  F = net.apply(params, x, t, cond, None)
  moved = net.apply(params, x.at[0, 0, 0].add(1.0), t, cond, None)
  np.testing.assert_allclose(moved[1:], F[1:], rtol=1e-4, atol=1e-5)
  assert np.abs(moved - F)[0, 2:, 2:].max() > 1e-4


def test_jvp_agrees_with_finite_differences():
  options = dict(qk_norm="rms", modulation="pnorm_scale_shift", embedding="fourier", scan=True)
  make = functools.partial(small, **options, fourier_scale=0.5)
  with jax.enable_x64(True):
    net, params = from_nnx(make, dtype=jnp.float64), shaken(make)
    x, t, cond = inputs(dtype=np.float64)
    dx, dt = jnp.sin(3 * x), jnp.cos(t)
    apply = jax.jit(lambda params, x, t: net.apply(params, x, t, cond, None))
    F_fn = functools.partial(apply, params)
    F, dF = jax.jit(lambda *a: jax.jvp(F_fn, a, (dx, dt)))(x, t)
    h = 1e-5
    expected = (F_fn(x + h * dx, t + h * dt) - F_fn(x - h * dx, t - h * dt)) / (2 * h)
    assert F.dtype == dF.dtype == jnp.float64
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(dF, expected, rtol=1e-6, atol=1e-7)
    moved = params | {"map_noise": {"freqs": params["map_noise"]["freqs"] + 0.1}}
    assert params["map_noise"]["freqs"].shape == (4,)
    assert np.abs(apply(moved, x, t) - F).max() > 1e-4


@functools.cache
def derivatives(remat, scan, consistency):
  """F, and gradients of a loss on it: as of a consistency model, on a jvp's primal with dropout."""
  net = from_nnx(functools.partial(small, remat=remat, scan=scan))
  x, t, cond = inputs()

  @jax.jit
  def run(params):
    def loss(params):
      if not consistency:
        F = net.apply(params, x, t, cond, None)
        return jnp.sum(jnp.sin(F)), (F, F)
      F_fn = lambda x, t: net.apply(params, x, t, cond, jax.random.key(5))
      F, dF = jax.jvp(F_fn, (x, t), (x, t))
      return jnp.sum((F - jax.lax.stop_gradient(F - dF)) ** 2) / 2, (F, dF)

    grads, aux = jax.grad(loss, has_aux=True)(params)
    return *aux, grads

  F, dF, grads = run(dit.stack(built()[1]) if scan else built()[1])
  return F, dF, dit.unstack(grads) if scan else grads


@pytest.mark.slow
@pytest.mark.parametrize(
  ("remat", "scan", "consistency"),
  [
    pytest.param(True, True, False, marks=pytest.mark.soak),
    (True, True, True),
    (True, False, True),
    (False, True, True),
  ],
)
def test_remat_and_scan_change_neither_values_nor_tangents_nor_gradients(remat, scan, consistency):
  expected, got = derivatives(False, False, consistency), derivatives(remat, scan, consistency)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(np.abs(b).max()))
  jax.tree.map(near, got, expected)
  assert all(np.any(g) for g in jax.tree.leaves(got[2]["blocks"]))


def dots(jaxpr):
  """The dtypes of the operands of every product in a jaxpr and those inside it."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      yield {v.aval.dtype.name for v in eqn.invars}
    for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
      sub = getattr(sub, "jaxpr", sub)
      if hasattr(sub, "eqns"):
        yield from dots(sub)


@pytest.mark.parametrize(("scan", "mapping"), [(False, 3 + 2 + 1), (True, 3 + 1 + 1)])
def test_body_runs_in_bfloat16_and_embeddings_in_float32(scan, mapping):
  net = from_nnx(functools.partial(small, scan=scan), dtype="bfloat16")
  params = jax.eval_shape(net.init, jax.random.key(0))
  jaxpr = jax.make_jaxpr(net.apply)(params, *inputs(), jax.random.key(0))
  found = list(dots(jaxpr.jaxpr))
  assert all(len(dtypes) == 1 for dtypes in found)
  assert sum(dtypes == {"float32"} for dtypes in found) == mapping  # map_* and affine
  assert jaxpr.out_avals[0].dtype == jnp.float32


# --- options ------------------------------------------------------------------------------------


def test_modulation_is_what_its_formula_says():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)
  shift, scale = (
    jnp.asarray(a, jnp.float32) for a in np.random.default_rng(1).normal(size=(2, 2, 1, 8))
  )
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  h = dit.layer_norm(x)
  near(dit.modulated_norm(x, [shift, scale], "scale_shift"), h * (1 + scale) + shift)
  rms = lambda a: np.sqrt(np.mean(np.square(a), -1, keepdims=True))
  bounded = dit.modulated_norm(x, [shift, scale], "pnorm_scale_shift")
  near(bounded, h * (scale / rms(scale)) + shift / rms(shift))
  near(dit.modulated_norm(x, [scale], "pnorm_scale"), h * (scale / rms(scale)))
  near(dit.modulated_norm(x, [100 * shift, 100 * scale], "pnorm_scale_shift"), bounded)


def test_layer_norm_has_float32_statistics():
  x = 100 + np.random.default_rng(0).normal(size=(2, 3, 64))
  y = np.asarray(dit.layer_norm(jnp.asarray(x, jnp.float32)))
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-4)
  np.testing.assert_allclose(y.std(-1), 1, rtol=1e-3)
  half = jnp.asarray(x, jnp.bfloat16)
  exact = dit.layer_norm(half.astype(jnp.float32))
  np.testing.assert_allclose(dit.layer_norm(half).astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_variance_of_published_weights_is_left_out():
  make = functools.partial(small, learn_sigma=True)
  params = shaken(make)
  kernel = params["last"]["linear"]["kernel"]
  assert kernel.shape == (16, 2 * 2 * 4)
  half = lambda a: a.reshape(*a.shape[:-1], 4, 4)[..., :2].reshape(*a.shape[:-1], 8)
  less = params | {
    "last": params["last"] | {"linear": jax.tree.map(half, params["last"]["linear"])}
  }
  x, t, cond = inputs()
  F = jax.jit(from_nnx(make).apply)(params, x, t, cond, None)
  assert F.shape == x.shape
  np.testing.assert_allclose(F, built()[0].apply(less, x, t, cond, None), rtol=1e-4, atol=1e-5)


def test_a_student_that_is_told_more_starts_as_its_teacher():
  net, teacher = built()
  params = grow(teacher, fresh(scan=False))
  x, t, cond = inputs()
  conds = cond | {"guidance": jnp.linspace(1, 2, 3), "segment": 0.3 * jnp.arange(3)}
  apply = told().apply
  F = apply(params, x, t, conds, None)
  np.testing.assert_allclose(F, net.apply(teacher, x, t, cond, None), rtol=1e-5, atol=1e-6)
  for name in ("guidance", "segment"):
    layer = {f"map_{name}": jax.tree.map(lambda a: a + 0.3, params[f"map_{name}"])}
    moved = apply(params | layer, x, t, conds, None)
    other = apply(params | layer, x, t, conds | {name: conds[name] + 0.2}, None)
    assert np.abs(moved - F).max() > 1e-4 and np.abs(other - moved).max() > 1e-5
  with pytest.raises(ValueError, match=r"guidance=True needs cond\['guidance'\]"):
    jax.eval_shape(apply, params, x, t, cond, None)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(resolution=30, patch=4), "resolution=30 is not filled by patches.*Nearest: 32"),
    (dict(size="H"), "Unknown size 'H'. Choose from: S, B, L, XL"),
    (dict(depth=3), "size='B' says what .*'depth': 3.* give size=None"),
    (dict(size=None, depth=3), "size=None needs all of depth, width and num_heads"),
    (dict(size=None, depth=1, width=20, num_heads=3), "'width': 20, 'num_heads': 3.* do not fit"),
    (dict(size=None, depth=1, width=6, num_heads=3), "a multiple of num_heads and of 4"),
    (dict(modulation="additive"), "modulation 'additive'. Choose from: pnorm_scale, "),
    (dict(embedding="sine"), "embedding 'sine'"),
    (dict(qk_norm="layer"), "qk_norm 'layer'. Choose from: none, rms"),
    (dict(attention="flash"), "Unknown attention 'flash'"),
    (dict(dropout=1.0), "dropout=1.0"),
  ],
)
def test_dit_explains_bad_options(kwargs, message):
  with pytest.raises(ValueError, match=message):
    DiT(**kwargs, rngs=nnx.Rngs(0))


def test_bad_inputs_are_explained_while_tracing():
  net, params = built()
  x, t, cond = inputs()
  call = lambda *args: jax.eval_shape(net.apply, params, *args, None)
  with pytest.raises(ValueError, match=r"needs cond\['label'\]"):
    call(x, t, {})
  with pytest.raises(ValueError, match="The network is for x"):
    call(x[:, :2], t, cond)
  with pytest.raises(ValueError, match="augment_dim=0: leave it out"):
    call(x, t, cond | {"augment": jnp.ones((3, 9))})
