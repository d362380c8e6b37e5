import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import distances

ALL = {
  "squared_l2": distances.squared_l2(),
  "l1": distances.l1(),
  "l2": distances.l2(),
  "pseudo_huber": distances.pseudo_huber(0.03),
  "pseudo_huber of iCT": distances.pseudo_huber(),
}


def images(n=3):
  key_a, key_b = jax.random.split(jax.random.key(0))
  return jax.random.normal(key_a, (n, 4, 4, 3)), jax.random.normal(key_b, (n, 4, 4, 3))


def test_each_is_the_sum_over_the_sample_that_its_name_says():
  a, b = images()
  flat = np.asarray(a - b, np.float64).reshape(3, -1)
  norm = np.linalg.norm(flat, axis=-1)
  np.testing.assert_allclose(ALL["squared_l2"](a, b), norm**2, rtol=1e-6)
  np.testing.assert_allclose(ALL["l1"](a, b), np.abs(flat).sum(-1), rtol=1e-6)
  np.testing.assert_allclose(ALL["l2"](a, b), norm, rtol=1e-6)
  huber = np.sqrt(norm**2 + 0.03**2) - 0.03
  np.testing.assert_allclose(ALL["pseudo_huber"](a, b), huber, rtol=1e-6)


def test_pseudo_huber_takes_one_norm_over_the_image_not_one_per_element():
  c = 0.00054 * np.sqrt(2)
  a, b = jnp.array([[0.3, -0.4]]), jnp.zeros((1, 2))
  for distance in (distances.pseudo_huber(c), distances.pseudo_huber()):
    assert float(distance(a, b)[0]) == pytest.approx(0.4992369079, abs=1e-7)


def test_the_width_of_ict_grows_with_the_root_of_the_dimensions():
  a = 0.01 * jnp.ones((1, 32, 32, 3))
  expected = distances.pseudo_huber(0.02993)(a, 0 * a)
  np.testing.assert_allclose(distances.pseudo_huber()(a, 0 * a), expected, rtol=1e-4)


def test_pseudo_huber_keeps_its_digits_where_images_are_near():
  a = jnp.full((1, 1), 1e-5)
  value = float(distances.pseudo_huber(0.03)(a, 0 * a)[0])
  assert value == pytest.approx(1e-10 / 0.06, rel=1e-5)  # root minus c gives 0 or 2e-9 in float32


@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_are_zero_at_equal_images(name):
  a, _ = images()
  value, grad = jax.value_and_grad(lambda x: jnp.sum(ALL[name](x, a)))(a)
  assert float(value) == 0 and not np.any(grad)


@pytest.mark.parametrize("name", ["l2", "pseudo_huber"])
def test_the_gradient_is_the_difference_over_its_length(name):
  a, b = images()
  c = {"l2": 0.0, "pseudo_huber": 0.03}[name]
  grad = jax.grad(lambda x: jnp.sum(ALL[name](x, b)))(a)
  root = jnp.sqrt(jnp.sum((a - b) ** 2, (1, 2, 3), keepdims=True) + c**2)
  np.testing.assert_allclose(grad, (a - b) / root, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_distances_see_samples_one_by_one_and_both_ways_alike(name):
  a, b = images()
  np.testing.assert_allclose(ALL[name](a, b), ALL[name](b, a), rtol=1e-6)
  alone = jnp.concatenate([ALL[name](a[i : i + 1], b[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(ALL[name](a, b), alone, rtol=1e-6)


def test_widths_that_break_the_gradient_are_refused():
  with pytest.raises(ValueError, match="c=0.0 must be positive: for the norm itself take `l2`"):
    distances.pseudo_huber(0.0)
  with pytest.raises(ValueError, match="eps=0.0 must be positive"):
    distances.l2(0.0)
