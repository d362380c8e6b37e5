import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import editing, samplers, times, trigflow
from cmjax.samplers import conventions
from helpers import exact
from helpers.exact import SIGMA_DATA

KEY = jax.random.key(0)
IMAGE = jnp.tanh(jax.random.normal(jax.random.key(7), (2, 4, 6, 3)))
GRID = times.ode_times(8, sigma_data=SIGMA_DATA)[:-1]

# f(x_t, t) = x_t / cos t: what goes in comes out, in EDM's coordinates.
TRANSPARENT = lambda params, x, t, cond, key: (
  -x * trigflow.cos_sin(t, x)[1] / (trigflow.cos_sin(t, x)[0])
)


def arbitrary(params, x, t, cond, key):
  """A network of no particular model, which mixes pixels and channels."""
  mixed = x + 0.5 * jnp.roll(x, 1, -1) - 0.3 * jnp.roll(x, 1, 1)
  return jnp.sin(2 * mixed + t.reshape(-1, 1, 1, 1))


def random_mask(shape):
  return jax.random.bernoulli(jax.random.key(3), 0.5, shape)


def in_sigma(A, omega, image, eps, sigmas, sigma_min, net=arbitrary):
  """Algorithm 4 of Song et al. 2023 in sigma and NumPy, with A acting on flattened images."""
  batch, shape = len(image), image.shape

  def f(x, sigma):  # c_skip x + c_out F of the network in EDM's terms, sigma_min = 0
    t = np.arctan2(sigma, SIGMA_DATA)
    x_t = jnp.asarray(np.cos(t) * x.reshape(shape))
    F = net({}, x_t / SIGMA_DATA, jnp.full(batch, t), {}, None)
    return np.asarray(np.cos(t) * x_t - np.sin(t) * SIGMA_DATA * F).reshape(batch, -1)

  image = np.asarray(image, np.float64).reshape(batch, -1)
  y = (image @ A.T * (1 - omega)) @ np.linalg.inv(A).T
  x = y + sigmas[0] * eps[0].reshape(batch, -1)
  for n, sigma in enumerate(sigmas):
    if n:
      x = x + np.sqrt(sigma**2 - sigma_min**2) * eps[n].reshape(batch, -1)
    x = f(x, sigma)
    x = (y @ A.T * (1 - omega) + x @ A.T * omega) @ np.linalg.inv(A).T
  return x.reshape(shape)


def orthogonal(first):
  """An orthogonal matrix whose first row is along `first`: A of the paper, by QR in float64."""
  columns = np.eye(len(first))
  columns[:, 0] = first
  return np.linalg.qr(columns)[0].T


def gray_map(shape):
  """A and Omega of colourisation."""
  pixels = int(np.prod(shape[1:3]))
  A = np.kron(np.eye(pixels), orthogonal([0.2989, 0.5870, 0.1140]))
  return A, np.tile([0.0, 1.0, 1.0], pixels)


def patch_map(shape, factor):
  """A and Omega of super-resolution: rows are taken by patch, then mixed within each."""
  _, h, w, c = shape
  index = np.arange(h * w * c).reshape(h // factor, factor, w // factor, factor, c)
  order = index.transpose(0, 2, 4, 1, 3).reshape(-1)
  blocks = len(order) // factor**2
  mix = np.kron(np.eye(blocks), orthogonal(np.ones(factor**2)))
  omega = np.tile(np.append(0.0, np.ones(factor**2 - 1)), blocks)
  return mix @ np.eye(len(order))[order], omega


@pytest.mark.parametrize("task", ["inpaint", "colorize", "super_resolve"])
def test_editing_is_algorithm_4_in_sigma_with_the_orthogonal_map_by_qr(task):
  with jax.enable_x64(True):
    image, sigma_min, sigmas = jnp.asarray(IMAGE, jnp.float64), 0.3, (80.0, 4.0, 0.9, 0.4)
    grid = conventions.consistency_times_from_sigmas(*sigmas, sigma_data=SIGMA_DATA)
    kwargs = dict(sigma_data=SIGMA_DATA, sigma_min=sigma_min)
    if task == "inpaint":
      mask = random_mask(image.shape)
      A, omega = np.eye(image[0].size), np.asarray(mask, np.float64).reshape(2, -1)
      got = editing.inpaint(arbitrary, {}, KEY, image, mask, grid, **kwargs)
    elif task == "colorize":
      A, omega = gray_map(image.shape)
      got = editing.colorize(arbitrary, {}, KEY, image, grid, **kwargs)
    else:
      A, omega = patch_map(image.shape, 2)
      got = editing.super_resolve(arbitrary, {}, KEY, image, 2, grid, **kwargs)
    keys = jax.random.split(KEY, len(sigmas))
    eps = [np.asarray(jax.random.normal(k, (image.size,), jnp.float64)) for k in keys]
    want = in_sigma(A, omega, image, eps, sigmas, sigma_min)
    assert np.max(np.abs(want - np.asarray(image))) > 0.3
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_inpainting_keeps_the_known_pixels_to_the_last_bit():
  for shape in (IMAGE.shape, (1, 4, 6, 1)):
    mask = random_mask(shape)
    paint = jax.jit(
      lambda image, mask: editing.inpaint(
        arbitrary, {}, KEY, image, mask, GRID, sigma_data=SIGMA_DATA
      )
    )
    got, everywhere = paint(IMAGE, mask), np.broadcast_to(mask, IMAGE.shape)
    np.testing.assert_array_equal(got[~everywhere], IMAGE[~everywhere])
    assert float(jnp.min(jnp.abs(got - IMAGE)[everywhere])) > 0
    # What is hidden has no influence.
    np.testing.assert_array_equal(got, paint(jnp.where(mask, 9.0, IMAGE), mask))


def test_colourisation_keeps_the_gray_value_and_needs_only_that():
  colour = jax.jit(
    lambda image: editing.colorize(arbitrary, {}, KEY, image, GRID, sigma_data=SIGMA_DATA)
  )
  gray = lambda image: image @ np.array([0.2989, 0.5870, 0.1140], np.float32)
  got = colour(IMAGE)
  np.testing.assert_allclose(gray(got), gray(IMAGE), atol=1e-6)
  value = gray(IMAGE)[..., None] / (0.2989 + 0.5870 + 0.1140)
  np.testing.assert_allclose(colour(value), got, atol=1e-4)
  assert float(jnp.mean(jnp.abs(got - value))) > 0.1


def test_super_resolution_keeps_the_means_of_the_patches_and_needs_only_them():
  enlarge = jax.jit(
    lambda image: editing.super_resolve(arbitrary, {}, KEY, image, 2, GRID, sigma_data=SIGMA_DATA)
  )
  means = lambda image: image.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
  got = enlarge(IMAGE)
  np.testing.assert_allclose(means(got), means(IMAGE), atol=1e-6)
  repeated = jnp.repeat(jnp.repeat(means(IMAGE), 2, 1), 2, 2)
  np.testing.assert_allclose(enlarge(repeated), got, atol=1e-4)
  assert float(jnp.mean(jnp.abs(got - repeated))) > 0.1


def test_the_first_step_has_noise_of_std_sigma_max_around_what_is_known():
  # The authors' notebook adds normal * ts[0], and ts[0] = 0 is a position: no noise at t = T.
  image = jnp.full((400, 5, 5, 3), 0.7)
  mask = jnp.ones((1, 1, 1, 1), bool)
  grid = times.consistency_times(sigma_data=SIGMA_DATA)
  for sigma_min in (0.0, 0.002):
    kwargs = dict(sigma_data=SIGMA_DATA, sigma_min=sigma_min)
    got = editing.inpaint(TRANSPARENT, {}, KEY, image, mask, grid, **kwargs)
    assert float(jnp.std(got)) == pytest.approx(80.0, rel=4 / np.sqrt(2 * got.size))


def test_strokes_are_noised_to_the_first_sigma_and_not_put_back():
  image = jnp.full((400, 5, 5, 3), 0.7)
  grid = conventions.consistency_times_from_sigmas(5.38, 2.24, sigma_data=SIGMA_DATA)
  got = editing.stroke_to_image(TRANSPARENT, {}, KEY, image, grid, sigma_data=SIGMA_DATA)
  std = np.hypot(5.38, 2.24)
  assert float(jnp.mean(got)) == pytest.approx(0.7, abs=4 * std / np.sqrt(got.size))
  assert float(jnp.std(got)) == pytest.approx(std, rel=4 / np.sqrt(2 * got.size))


# Two pixels of a Gaussian whose covariance has these axes and stds.
AXES = np.array([[0.8, 0.6], [-0.6, 0.8]])
STDS = np.array([0.5, 0.15])
COVARIANCE = AXES.T @ np.diag(STDS**2) @ AXES


def correlated(params, x, t, cond, key):
  """F of the true consistency function of these two pixels: one Gaussian along each axis."""
  c, s = trigflow.cos_sin(t, x)
  axes, stds = jnp.asarray(AXES, x.dtype), jnp.asarray(STDS[None], x.dtype)
  along = SIGMA_DATA * x @ axes.T
  f = along * stds / jnp.sqrt(c**2 * stds**2 + s**2 * SIGMA_DATA**2)
  return (c * along - f) @ axes / (SIGMA_DATA * s)


@pytest.mark.heavy
def test_inpainting_a_gaussian_slowly_draws_from_the_exact_conditional():
  # A short step is one of Langevin's with the score, x + sigma z + sigma^2 / 2 score, so slowly
  # decreasing noise ends in the conditional; few steps do not, which is the method's own error.
  n, known = 20_000, 0.7
  image = jnp.broadcast_to(jnp.array([known, 0.0]), (n, 2))
  mask = jnp.array([[False, True]])
  a, b, c = COVARIANCE[0, 0], COVARIANCE[0, 1], COVARIANCE[1, 1]
  mean, std = b / a * known, np.sqrt(c - b**2 / a)

  def inpaint(num_steps):
    sigmas = np.geomspace(80.0, 0.03, num_steps)
    grid = conventions.consistency_times_from_sigmas(*sigmas, sigma_data=SIGMA_DATA)
    return editing.inpaint(correlated, {}, KEY, image, mask, grid, sigma_data=SIGMA_DATA)[:, 1]

  slow, fast = inpaint(600), inpaint(4)
  assert abs(mean) > 2 * std > 0
  assert float(jnp.mean(slow)) == pytest.approx(mean, abs=0.03 * std)
  assert float(jnp.std(slow)) == pytest.approx(std, rel=0.03)
  assert abs(float(jnp.mean(fast)) - mean) > std


def test_interpolation_goes_from_end_to_end_on_the_sphere():
  key_a, key_b = jax.random.split(KEY)
  z_a, z_b = (trigflow.noise(k, (3, 50), sigma_data=SIGMA_DATA) for k in (key_a, key_b))
  t = float(np.arctan2(80, SIGMA_DATA))
  net = lambda params, x, t, cond, key: exact.F_consistency(x, t)
  walk = jax.jit(lambda a, b: editing.interpolate(net, {}, a, b, 5, t=t, sigma_data=SIGMA_DATA))(
    z_a, z_b
  )
  assert walk.shape == (5, 3, 50)
  for end, z in ((0, z_a), (-1, z_b)):
    truth = exact.consistency(np.sin(t) * z, jnp.full(3, t))
    np.testing.assert_allclose(walk[end], truth, rtol=1e-3, atol=1e-4)
  unit = lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  for w in (0.25, 0.5):
    between = editing.slerp(unit(z_a), unit(z_b), jnp.full(3, w))
    np.testing.assert_allclose(jnp.linalg.norm(between, axis=-1), 1.0, rtol=1e-5)
    angle = lambda p, q: jnp.arccos(jnp.sum(p * q, -1))
    np.testing.assert_allclose(
      angle(unit(z_a), between), w * angle(unit(z_a), unit(z_b)), rtol=1e-4
    )


def test_interpolation_between_equal_ends_stays_there():
  z = jnp.full((3, 2, 2, 1), 0.5)  # the cosine is 1 to the last bit: 0 / 0 without the limit
  with jax.debug_nans(True):
    np.testing.assert_allclose(editing.slerp(z, z, jnp.array([0.0, 0.3, 1.0])), z, rtol=1e-6)


def test_conditions_follow_their_pair():
  net = lambda params, x, t, cond, key: jnp.broadcast_to(cond["label"][:, None], x.shape)
  z, label = jnp.zeros((2, 3)) + 0.1, jnp.array([1.0, 2.0])
  got = editing.interpolate(
    net, {}, z, z, 4, t=np.pi / 2, sigma_data=SIGMA_DATA, cond={"label": label}
  )
  want = np.broadcast_to(-SIGMA_DATA * label[None, :, None], (4, 2, 3))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_from_nothing_known_editing_is_sampling():
  got = editing.edit(arbitrary, {}, KEY, IMAGE, jnp.zeros_like, GRID, sigma_data=SIGMA_DATA)
  sampled = samplers.consistency(arbitrary, {}, KEY, IMAGE.shape, GRID, sigma_data=SIGMA_DATA)
  np.testing.assert_array_equal(got, sampled)


def call(function, *args, image=IMAGE, grid=GRID, **kwargs):
  return lambda: function(
    arbitrary, {}, KEY, image, *args, grid, **(dict(sigma_data=SIGMA_DATA) | kwargs)
  )


def walk(z_b, num, t):
  return lambda: editing.interpolate(arbitrary, {}, IMAGE, z_b, num, t=t, sigma_data=SIGMA_DATA)


MASK = jnp.ones((1, 4, 6, 1), bool)


@pytest.mark.parametrize(
  "make, message",
  [
    (call(editing.inpaint, jnp.ones((4, 6), bool)), r"mask's shape \(4, 6\) must be"),
    (call(editing.inpaint, jnp.ones((2, 4, 5, 3), bool)), r"mask's shape \(2, 4, 5, 3\)"),
    (call(editing.inpaint, MASK.astype(float)), "must be bool, True where to generate"),
    (call(editing.inpaint, MASK, grid=GRID[::-1]), "decreasing sequence"),
    (call(editing.inpaint, MASK, grid=[80.0, 0.5]), "sigma_to_t"),
    (call(editing.inpaint, MASK, sigma_min=0.1), "drop the steps below"),
    (call(editing.colorize, image=IMAGE[..., :2]), r"\[b, h, w, 3\] or"),
    (call(editing.super_resolve, 4), r"factor=4 must divide .* 4 and 6. Possible: \[2\]"),
    (call(editing.super_resolve, 2, image=IMAGE[0]), r"\[b, h, w, c\]"),
    (call(editing.stroke_to_image, grid=[0.5, 1.0]), "decreasing sequence"),
    (walk(IMAGE[:1], 3, 1.5), "one shape"),
    (walk(IMAGE, 1, 1.5), "at least 2"),
    (walk(IMAGE, 3, 80.0), "sigma_to_t"),
  ],
)  # fmt: skip
def test_bad_edits_are_refused_with_advice(make, message):
  with pytest.raises(ValueError, match=message):
    make()
