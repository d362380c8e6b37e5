import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.losses import lpips


@functools.cache
def weights():
  """Random weights that keep the size of the features from layer to layer.

  All biases are negative, so that every feature of an image of ImageNet's mean is 0.
  """
  rng = np.random.default_rng(0)

  def draw(name, shape):
    if name.startswith("lin"):
      return rng.uniform(size=shape)
    if name.endswith("bias"):
      return -np.abs(rng.normal(scale=0.1, size=shape))
    return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))

  return {name: draw(name, shape).astype("f") for name, shape in lpips.shapes().items()}


def images(b=2, side=16):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.uniform(-1, 1, (2, b, side, side, 3)), jnp.float32)


@functools.cache
def compiled(pooling, resize=None):
  # As an argument: constants are kept with the program, 55 MB of them.
  distance = lambda w, a, b: lpips.distance(w, pooling=pooling, resize=resize)(a, b)
  return functools.partial(jax.jit(distance), weights())


@functools.cache
def layer(n):
  """Kernel [3, 3, in, out] and bias of a convolution, in float64."""
  w, bias = (np.float64(weights()[f"features.{n}.{part}"]) for part in ("weight", "bias"))
  return np.ascontiguousarray(w.transpose(2, 3, 1, 0)), bias


def by_hand(a, b, pooling):
  """The definition, pixel by pixel in float64 NumPy."""
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

  def conv(x, n):
    (w, bias), side = layer(n), len(x)
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = sum(x[i : i + side, j : j + side] @ w[i, j] for i in range(3) for j in range(3))
    return np.maximum(y + bias, 0)

  def features(x):
    x, index = ((np.float64(x) + 1) / 2 - mean) / std, 0
    for k, depth in enumerate((2, 2, 3, 3, 3)):
      if k:
        corners = np.stack([x[i::2, j::2] for i in (0, 1) for j in (0, 1)])
        x, index = (corners.max(0) if pooling == "max" else corners.mean(0)), index + 1
      for _ in range(depth):
        x, index = conv(x, index), index + 2  # a ReLU after each
      yield x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)

  lin = [weights()[f"lin{k}.model.1.weight"].ravel() for k in range(5)]
  stages = zip(features(a), features(b), lin, strict=True)
  return sum(np.mean((y_a - y_b) ** 2 @ np.float64(l)) for y_a, y_b, l in stages)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_distance_is_its_definition(pooling):
  a, b = images()
  expected = [by_hand(*pair, pooling) for pair in zip(np.asarray(a), np.asarray(b), strict=True)]
  assert min(expected) > 0.1
  np.testing.assert_allclose(compiled(pooling)(a, b), expected, rtol=2e-5)


def test_distance_is_symmetric_and_zero_for_equal_images():
  a, b = images()
  d = compiled("max")
  np.testing.assert_allclose(d(a, b), d(b, a), rtol=1e-5)
  np.testing.assert_allclose(d(a, a), 0, atol=1e-12)


@functools.cache
def derivatives():
  """In float64: x, b, direction -> the gradient at x, and its derivative in that direction."""
  d = functools.partial(lpips.distance, pooling="max", resize=None)
  grad = lambda w, x, b: jax.grad(lambda x: d(w)(x, b).sum())(x)
  both = lambda w, x, b, direction: jax.jvp(lambda x: grad(w, x, b), (x,), (direction,))
  return functools.partial(jax.jit(both), weights())


@pytest.mark.slow  # the derivative of a derivative of VGG16 takes long to compile
def test_gradient_and_second_derivative_agree_with_finite_differences():
  with jax.enable_x64(True):
    a, b = jnp.asarray(images(1), jnp.float64)
    direction = jnp.asarray(np.random.default_rng(2).normal(size=a.shape))
    grad = lambda x: derivatives()(x, b, direction)[0]
    h = 1e-7
    expected = (grad(a + h * direction) - grad(a - h * direction)) / (2 * h)
    curvature = derivatives()(a, b, direction)[1]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(curvature, expected, atol=1e-3 * np.abs(expected).max())
    d = compiled("max")
    slope = (d(a + h * direction, b) - d(a - h * direction, b)) / (2 * h)
    np.testing.assert_allclose(np.sum(grad(a) * direction), slope[0], rtol=1e-5)


@pytest.mark.slow
def test_gradient_is_zero_at_equal_images_and_finite_where_no_feature_is_active():
  with jax.enable_x64(True):
    a, b = jnp.asarray(images(1), jnp.float64)
    grad, _ = derivatives()(a, a, b)
    np.testing.assert_allclose(grad, 0, atol=1e-12)
    mean = jnp.broadcast_to(jnp.asarray(lpips.MEAN), a.shape)
    for x, y in ((mean, mean), (mean, b), (a, mean)):
      assert all(np.all(np.isfinite(part)) for part in derivatives()(x, y, b))


def test_images_are_resized_bilinearly():
  a, b = images(side=8)
  smooth = [jax.image.resize(x, (2, 16, 16, 3), "linear") for x in (a, b)]
  np.testing.assert_allclose(compiled("max", 16)(a, b), compiled("max")(*smooth), rtol=1e-5)


def test_bfloat16_images_are_compared_in_float32():
  half = images().astype(jnp.bfloat16)
  jaxpr = jax.make_jaxpr(lpips.distance(weights(), pooling="max"))(*half)
  convs = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
  assert len(convs) == 26
  assert {v.aval.dtype.name for eqn in convs for v in eqn.invars} == {"float32"}
  assert jaxpr.out_avals[0].dtype == jnp.float32


def test_bad_weights_and_images_are_explained():
  bad = dict(weights()) | {"features.5.weight": np.zeros((128, 64, 1, 1))}
  del bad["lin2.model.1.weight"]
  with pytest.raises(ValueError, match=r"2 of 31 arrays.*lin2.*\(1, 256, 1, 1\) is missing; feat"
                     r"ures.5.weight is \(128, 64, 1, 1\), not \(128, 64, 3, 3\)"):  # fmt: skip
    lpips.check(bad)
  lpips.check(weights() | {"classifier.0.bias": np.zeros(3)})
  make = functools.partial(lpips.distance, weights())
  with pytest.raises(ValueError, match="pooling 'min'. Choose from: average, max"):
    make(pooling="min")
  with pytest.raises(ValueError, match="resize=8 is below 16"):
    make(pooling="max", resize=8)
  d = make(pooling="max", resize=None)
  with pytest.raises(ValueError, match=r"images \[b, h, w, 3\].*\(2, 16, 16, 1\)"):
    jax.eval_shape(d, *jnp.zeros((2, 2, 16, 16, 1)))
  with pytest.raises(ValueError, match="smaller than 16 x 16: set resize=224"):
    jax.eval_shape(d, *jnp.zeros((2, 2, 8, 16, 3)))
