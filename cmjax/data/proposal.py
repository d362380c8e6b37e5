"""What noise to train on: sigma_data, P_mean and P_std of a data set, from its images alone.

EDM chose the log-normal proposal so that training works at the noise levels where a network can do
better than an untrained one (Karras et al. 2022, sec. 5 and fig. 5a): at low noise there is little
left to see, at high noise there is only the mean to predict. How much can be gained where is
measured here, without a network, on images held out from what the denoisers were fitted to:

  gain(sigma) = 1 - E ||D - x0||^2 / E ||D_0 - x0||^2,                                           (1)

where D_0 knows the mean image and the total variance S only, so that its error per dimension is
S sigma^2 / (S + sigma^2): the error of a constant F. D is the better of two denoisers:

  linear    Wiener's filter along the principal directions of the data. It sees correlations, at
            every noise level, and has a closed form: E = mean_i m_i sigma^2 / (m_i + sigma^2).
  mixture   the posterior mean if the data were the training points themselves. It sees any shape,
            but only where the noise is wider than the distance between points.

A trained network gains more than both at low noise: what is here is a lower bound, and it is used
for where the gain lies and not for how large it is.
"""

from typing import NamedTuple

import numpy as np

# What the samplers visit, and so all that can be asked of a network: ln 0.002 to ln 80.
LOG_SIGMA = np.linspace(np.log(0.002), np.log(80.0), 54)
MAX_DIRECTIONS = 4096  # of the spectrum; the rest is known by its mean variance
MAX_POINTS, MAX_HELD_OUT = 8192, 256  # of the mixture


class Proposal(NamedTuple):
  """ln sigma ~ N(P_mean, P_std^2)."""

  P_mean: float
  P_std: float


class Gain(NamedTuple):
  """What can be learned at each noise level, and the scale of the data."""

  log_sigma: np.ndarray  # [k]
  linear: np.ndarray  # [k], of Wiener's filter, below 1; 0: nothing
  mixture: np.ndarray  # [k], of the mixture; negative where it is worse than nothing
  sigma_data: float  # std over all pixels

  @property
  def best(self) -> np.ndarray:
    """The gain of the better one, 0 where neither has any."""
    return np.maximum(np.maximum(self.linear, self.mixture), 0.0)


def measure(images: np.ndarray, *, seed: int = 0) -> Gain:
  """The gain by noise level, fitted on a random half of the images and measured on the other half.

  Args:
    images: uint8 [n, h, w, c], mapped as x / 127.5 - 1, or points float [n, d]; a few thousand are
      enough.
    seed: of the halves and of the noise.

  Raises:
    ValueError: there are fewer than 16 images, or they do not vary.
  """
  if len(images) < 16:
    raise ValueError(f"A proposal needs at least 16 images, got {len(images)}. Add data.")
  x = np.asarray(images, np.float32).reshape(len(images), -1)
  if images.dtype == np.uint8:
    x = x / np.float32(127.5) - 1
  sigma_data = float(x.std(dtype=np.float64))
  rng = np.random.default_rng(seed)
  x = x[rng.permutation(len(x))]
  fit, held_out = x[: len(x) // 2], x[len(x) // 2 :]
  mean = fit.mean(0, dtype=np.float64).astype(np.float32)
  fit, held_out = fit - mean, held_out - mean
  if not held_out.any():
    raise ValueError("All images are the same: there is nothing to learn from them.")
  sigma, few = np.exp(LOG_SIGMA), held_out[:MAX_HELD_OUT]
  linear = linear_error(held_out_spectrum(fit, held_out), sigma) / error_of_nothing(held_out, sigma)
  # Over the error on the same few: their variance is not quite that of all.
  mixture = mixture_error(fit[:MAX_POINTS], few, sigma, rng) / error_of_nothing(few, sigma)
  return Gain(LOG_SIGMA, 1 - linear, 1 - mixture, sigma_data)


def error_of_nothing(held_out: np.ndarray, sigma: np.ndarray) -> np.ndarray:
  """The mean squared error [k] of D_0, for samples [m, d] without the mean it knows."""
  variance = np.mean(np.square(held_out, dtype=np.float64))
  return variance * sigma**2 / (variance + sigma**2)


def held_out_spectrum(fit: np.ndarray, held_out: np.ndarray) -> np.ndarray:
  """Variances [d] of `held_out` [m, d] along the principal directions of `fit` [n, d].

  Both without their mean. Directions beyond those of the first 4,096 images or dimensions share
  what variance is left. Variances of the fitted images themselves would be spread too wide, and
  make the smallest look emptier than they are; these are spread less than the true ones, so that
  the filter's error is never underestimated.
  """
  num, dim = fit.shape
  few = num < min(dim, MAX_DIRECTIONS // 2)  # then the same directions come at a lower price
  if dim <= MAX_DIRECTIONS and not few:
    directions = np.linalg.eigh(fit.T @ fit / np.float32(num))[1][:, -num:]
  else:
    directions = np.linalg.svd(fit[: MAX_DIRECTIONS // 2], full_matrices=False)[2].T
  known = np.mean(np.square(held_out @ directions, dtype=np.float64), axis=0)
  left = dim - len(known)
  if not left:
    return known
  rest = np.mean(np.sum(np.square(held_out, dtype=np.float64), axis=1)) - known.sum()
  return np.concatenate([known, np.full(left, max(rest, 0.0) / left)])


def linear_error(spectrum: np.ndarray, sigma: np.ndarray) -> np.ndarray:
  """Wiener's mean squared error per dimension at each sigma [k], for variances [d]."""
  noise = np.square(np.asarray(sigma, np.float64))[:, None]
  return np.mean(spectrum * noise / (spectrum + noise), axis=1)


def mixture_error(
  points: np.ndarray, held_out: np.ndarray, sigma: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """The same [k] of the posterior mean under a mixture of deltas at `points` [n, d]."""
  z = rng.standard_normal(held_out.shape, np.float32)
  across, noise, squares = held_out @ points.T, z @ points.T, np.sum(points**2, axis=1) / 2
  errors = []
  for s in np.asarray(sigma, np.float32):
    exponent = (across + s * noise - squares) / s**2  # without what all points have in common
    weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    D = weight @ points / weight.sum(axis=1, keepdims=True)
    errors.append(np.mean(np.square(D - held_out, dtype=np.float64)))
  return np.array(errors)


def teacher(gain: Gain) -> Proposal:
  """The proposal of a diffusion teacher: mean and std of ln sigma under the density gain^2.

  The gain itself as a density is wider than teachers' proposals (CIFAR-10: a std of 2.0); squared,
  it gives CIFAR-10 (-0.72, 1.54), where EDM has (-1.2, 1.2). It is a start that may be half a unit
  of ln sigma off: docs/guides/tuning.md says how to go on from it.

  Raises:
    ValueError: no noise level has a gain of 2 %, so that there is none to choose.
  """
  if gain.best.max() < 0.02:
    raise ValueError(
      f"At no noise level can more than {gain.best.max():.1%} be gained over knowing the mean and "
      "the variance: the data looks like isotropic Gaussian noise. Check what was loaded."
    )
  density = gain.best**2 / np.sum(gain.best**2)
  P_mean = float(density @ gain.log_sigma)
  return Proposal(P_mean, float(np.sqrt(density @ (gain.log_sigma - P_mean) ** 2)))


def consistency(teacher: Proposal, *, sigma_data: float) -> Proposal:
  """The proposal of a consistency model on the data of this teacher.

  The line through what sCM chose (tables 4, 5, app. G): from teachers (-1.2, 1.2), (-0.8, 1.6) and
  (-0.4, 1.0) to models (-1.0, 1.4), (-1.0, 1.6) and (-0.8, 1.6), in ln(sigma / sigma_data) so that
  it moves with the scale of the data; theirs had sigma_data 0.5. It is within 0.07 of their P_mean.
  """
  unit = np.log(sigma_data / 0.5)
  P_mean = unit - 0.93 + 0.25 * (teacher.P_mean - unit + 0.8)
  return Proposal(float(P_mean), max(teacher.P_std, 1.5))
