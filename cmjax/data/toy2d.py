"""Points in the plane whose moments are known: zero mean and std sigma_data = 0.5.

The std is over both coordinates together, sqrt(E|x|^2 / 2), of the distribution and not of the
points drawn: each is divided by the closed form of its own std, so that another number of points
or another seed moves nothing.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "n 2"]

SIGMA_DATA = 0.5

# Uniform on a square of half width L has the variance L^2 / 3 per coordinate. Every column and
# every row of the board has as many black squares as white ones, so the marginals are uniform.
CHECKERBOARD_HALF_WIDTH = SIGMA_DATA * math.sqrt(3.0)

SPIRAL_ANGLE = 3.0 * math.pi  # one and a half turns
SPIRAL_NOISE = 0.2  # in units where the radius is the angle: neighbouring arms are pi apart

# Eight modes on a ring of radius r with a std of r / 10 each: r^2 (1/2 + 1/100) = sigma_data^2.
_RADIUS = SIGMA_DATA / math.sqrt(0.5 + 0.1**2)
_ANGLES = 2.0 * math.pi * np.arange(8) / 8
MIXTURE_MEANS = _RADIUS * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
MIXTURE_STD = 0.1 * _RADIUS


def checkerboard(rng: np.random.Generator, n: int) -> Points:
  """Uniform on the black squares of a 4x4 board, the bottom left one among them.

  The board is centred and `2 * CHECKERBOARD_HALF_WIDTH` wide.
  """
  column = rng.integers(0, 4, n)
  row = 2 * rng.integers(0, 2, n) + column % 2
  corner = np.stack([column, row], axis=-1)
  unit = (corner + rng.random((n, 2))) / 4
  return (CHECKERBOARD_HALF_WIDTH * (2.0 * unit - 1.0)).astype(np.float32)


def two_spirals(rng: np.random.Generator, n: int) -> Points:
  """Two noisy Archimedean arms, one the other turned by half a circle, each with half the mass.

  A point is +-theta (cos theta, sin theta) + SPIRAL_NOISE z before scaling, with theta^2 uniform
  on [0, SPIRAL_ANGLE^2]; so E|x|^2 = SPIRAL_ANGLE^2 / 2 + 2 SPIRAL_NOISE^2.
  """
  theta = SPIRAL_ANGLE * np.sqrt(rng.random((n, 1)))
  arm = 2.0 * rng.integers(0, 2, (n, 1)) - 1.0
  x = arm * theta * np.concatenate([np.cos(theta), np.sin(theta)], axis=-1)
  x += SPIRAL_NOISE * rng.standard_normal((n, 2))
  std = math.sqrt(SPIRAL_ANGLE**2 / 4 + SPIRAL_NOISE**2)
  return (SIGMA_DATA / std * x).astype(np.float32)


def gaussian_mixture(rng: np.random.Generator, n: int) -> Points:
  """Eight equal Gaussians on a ring: means `MIXTURE_MEANS` [8, 2], std `MIXTURE_STD` each."""
  means = MIXTURE_MEANS[rng.integers(0, len(MIXTURE_MEANS), n)]
  return (means + MIXTURE_STD * rng.standard_normal((n, 2))).astype(np.float32)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], Points]] = {
  "checkerboard": checkerboard,
  "two_spirals": two_spirals,
  "gaussian_mixture": gaussian_mixture,
}
