"""A program in float64: every kind of equation, with the noise that it has in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call

from cmjax.program import equations

X = np.linspace(0.3, 1.7, 6, dtype=np.float32).reshape(2, 3)


def scanned(x):
  carry, ys = jax.lax.scan(lambda c, y: (c + jnp.sin(y), c * y), jnp.zeros(3), x, reverse=True)
  return ys + carry


def looped(x):
  more = lambda carry: carry[0] < jnp.sum(x) * 3
  return jax.lax.while_loop(more, lambda carry: (carry[0] * 1.5 + x[0, 0], carry[1] + 1), (1.0, 0))


def scattered(x):
  table = jnp.arange(10, dtype=jnp.float32).reshape(5, 2) + x[0, 0]
  return jax.grad(lambda t: jnp.sum(jnp.exp(t[jnp.array([1, 3, 1])]) * x[0, 1]))(table)


PROGRAMS = {
  "products": lambda x: x @ x.T + jnp.einsum("ij,kj->ik", x, x),
  "derivatives": lambda x: jax.grad(lambda x: jnp.sum(jnp.tanh(x) ** 3 / (1 + x)))(x),
  "scan": scanned,
  "scan, its gradient": jax.grad(lambda x: jnp.sum(scanned(x) ** 2)),
  "cond": lambda x: jax.lax.cond(x[0, 0] > 0, lambda: jnp.sqrt(x), lambda: 0.0 * x),
  "while": looped,
  "remat": jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x))),
  "linear_call": lambda x: linear_call(lambda r, y: r * y, lambda r, g: r * g, x, jnp.sin(x)),
  "scatter": scattered,
  "convolution": lambda x: jax.lax.conv(x[None, None], jnp.ones((1, 1, 2, 2)), (1, 1), "SAME"),
  "iota": lambda x: jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7 * x,
  "sort": lambda x: jnp.sort(jnp.cos(9 * x), axis=-1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_the_value_that_it_has_of_numbers_in_float64(name):
  program = PROGRAMS[name]
  got = equations.in_float64(program, X)
  with jax.enable_x64(True):
    expected = jax.device_get(program(jnp.asarray(X, jnp.float64)))
  narrow = jax.device_get(program(jnp.asarray(X)))
  for a, b, c in zip(*map(jax.tree.leaves, (got, expected, narrow)), strict=True):
    if np.issubdtype(a.dtype, np.floating):
      assert a.dtype == np.float64
    else:
      assert a.dtype == c.dtype
    np.testing.assert_allclose(a, b, rtol=2e-7)  # constants of float32 are those of the program
    np.testing.assert_allclose(a, c, rtol=1e-4)


def test_what_asks_for_a_low_precision_gets_a_high_one():
  low = lambda x: (x.astype(jnp.float16) * jnp.float16(3)).astype(jnp.bfloat16) @ X.T
  got = equations.in_float64(low, X)
  np.testing.assert_allclose(got, np.float64(X) * 3 @ np.float64(X).T, rtol=1e-12)
  assert np.abs(np.asarray(low(X), np.float64) - got).max() > 1e-4


DRAWS = {
  "normal": lambda key: jax.random.normal(key, (100,)),
  "uniform": lambda key: jax.random.uniform(key, (100,), minval=-2.0),
  "integers": lambda key: jax.random.randint(key, (100,), 0, 1000),
  "coins": lambda key: jax.random.bernoulli(key, 0.3, (100,)),
  "a half": lambda key: jax.random.normal(key, (100,), jnp.bfloat16),
}


@pytest.mark.parametrize("name", DRAWS)
def test_noise_is_that_of_float32(name):
  draw = lambda seed: DRAWS[name](jax.random.fold_in(jax.random.key(3), seed))
  got, narrow = equations.in_float64(draw, np.int32(7)), draw(7)
  loose = 1e-2 if name == "a half" else 1e-5
  np.testing.assert_allclose(got, np.asarray(narrow, got.dtype), rtol=loose, atol=loose)
