"""U-Nets whose blocks are rematerialised or scanned: the same function, and a shorter program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.networks import ADM, EDM2, DDPMpp, from_nnx

SMALL = dict(channels=8, channel_mult=(1, 1), num_blocks=3, attn_resolutions=(4,), resolution=8)
# One level, two blocks: where a gradient is compiled.
FLAT = dict(channel_mult=(1,), num_blocks=2, attn_resolutions=(8,))
MAKES = {
  "ddpmpp": functools.partial(DDPMpp, augment_dim=0, **SMALL),
  "ncsnpp": functools.partial(
    DDPMpp, augment_dim=0, embedding="fourier", fir=(1, 3, 3, 1), encoder="residual", **SMALL
  ),
  "adm": functools.partial(ADM, num_classes=0, channels_per_head=4, **SMALL),
  "edm2": functools.partial(EDM2, channels_per_head=4, **SMALL),
}


def inputs():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
  return jnp.asarray(x), jnp.asarray(np.array([0.4, 1.3]))


@functools.cache
def drawn(name):
  """Parameters away from their start, where every block is blind."""
  shapes = jax.eval_shape(from_nnx(functools.partial(MAKES[name], **FLAT)).init, jax.random.key(0))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape)), shapes)


def derivatives(name, *, gradient, **options):
  """F, its tangent and, with `gradient`, that of a consistency loss; with dropout, in float64."""
  net = from_nnx(functools.partial(MAKES[name], dropout=0.3, **FLAT, **options))

  @jax.jit
  def run(params, x, t):
    def loss(params):
      F_fn = lambda x, t: net.apply(params, x, t, {}, jax.random.key(5))
      F, dF = jax.jvp(F_fn, (x, t), (x, t))
      return jnp.sum((F - jax.lax.stop_gradient(F - dF)) ** 2) / 2, (F, dF)

    return jax.grad(loss, has_aux=True)(params) if gradient else loss(params)

  with jax.enable_x64(True):  # the same sums in another order, up to its rounding
    return jax.tree.map(np.asarray, run(drawn(name), *inputs()))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "remat", "gradient"),
  [
    ("ddpmpp", True, True),
    ("ncsnpp", False, False),
    ("adm", True, False),
    ("edm2", True, False),
    *(
      pytest.param(*case, marks=pytest.mark.soak)
      for case in (
        *((name, True, True) for name in ("ncsnpp", "adm", "edm2")),
        ("ddpmpp", True, False),
        ("ncsnpp", False, True),
      )
    ),
  ],
)
def test_scan_changes_no_value_tangent_gradient_or_dropout_mask(name, remat, gradient):
  expected = derivatives(name, gradient=gradient)
  got = derivatives(name, gradient=gradient, scan=True, remat=remat)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
  jax.tree.map(near, got, expected)
  first, (F, dF) = got
  assert F.dtype == np.float64 and min(np.std(F), np.std(dF)) > 0.01
  if gradient:
    assert all(np.any(g) for g in jax.tree.leaves((first["enc"], first["dec"])))


@pytest.mark.parametrize(
  "name", ["ddpmpp", *(pytest.param(n, marks=pytest.mark.slow) for n in MAKES if n != "ddpmpp")]
)
def test_scan_keeps_the_weights_and_has_fewer_convolutions_to_compile(name):
  shapes, programs = [], []
  for scan in (False, True):
    net = from_nnx(functools.partial(MAKES[name], scan=scan))
    shapes.append(jax.eval_shape(net.init, jax.random.key(0)))
    x, t = (a.astype(np.float32) for a in inputs())
    jaxpr = jax.make_jaxpr(net.apply)(shapes[-1], x, t, {}, None)
    programs.append(str(jaxpr).count("conv_general_dilated["))
  assert shapes[0] == shapes[1]
  # Of two levels of equal widths, encoder: 3 | down | 3; decoder: two at the bottom, each of its
  # kind, 4 | up | 4. With attention in the last of a level only (DDPM++) it stands alone.
  rest = {"ncsnpp": 3}.get(name, 2)
  assert programs[0] == 2 * 18 + rest
  assert programs[1] == 2 * (9 if "pp" in name else 8) + rest
