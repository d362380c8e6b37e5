"""Exponential moving averages of the parameters; several lengths at once.

Lengths that were not averaged while training: `posthoc`, and `python -m cmjax.ema`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.base.ranges import Count, Positive, Range, Share
from cmjax.types import Array, Params

Width = Annotated[float, Range(0, 12**-0.5, "()", "It is the share of the training: 0.05.")]
# step (0 at the first update) -> beta of ema <- beta ema + (1 - beta) params
Decay = Callable[[ArrayLike], Array]


def half_life(
  half_life_images: Annotated[int | float, Range(0, ends="(]")],
  *,
  batch_size: int,
  rampup_ratio: Positive | None = 0.05,
) -> Decay:
  """beta = 0.5^(batch / h) with h = min(half_life, rampup_ratio * images seen) (EDM, section 4.1).

  The ramp-up keeps the average within a fixed fraction of the training so far: the first update
  copies the parameters, so initial weights never count.

  >>> round(float(half_life(500_000, batch_size=512, rampup_ratio=None)(0)), 5)
  0.99929
  """
  if half_life_images <= 0:
    raise ValueError(f"half_life_images={half_life_images} must be positive.")

  def decay(step):
    h = jnp.asarray(half_life_images, jnp.float32)
    if rampup_ratio is not None:
      h = jnp.minimum(h, rampup_ratio * batch_size * step)
    # At step 0 h is 0, and 0.5^inf = 0 is the limit meant.
    return jnp.exp2(-batch_size / h)

  return decay


def update(
  averages: dict[str, Params], params: Params, step: ArrayLike, decays: Mapping[str, Decay]
) -> dict[str, Params]:
  """All averages after the update that `step` counts from 0: ema + (1 - beta) (params - ema)."""

  def one(name):
    weight = 1.0 - decays[name](step)
    # Written as a difference: exact where both agree, and where beta is 0.
    return jax.tree.map(lambda e, p: jnp.where(weight == 1.0, p, e + weight * (p - e)),
                        averages[name], params)  # fmt: skip

  return {name: one(name) for name in averages}


def constant(beta: Share) -> Decay:
  """The same beta at every update, as the papers on consistency models state theirs.

  0.9999 in CM, 0.99993 in iCT on CIFAR-10. The average starts as a copy
  of the initial weights and forgets them with beta^n.

  Raises:
    ValueError: for a beta outside [0, 1).

  >>> round(float(constant(0.9999)(123)), 6)
  0.9999
  """
  if not 0 <= beta < 1:
    raise ValueError(f"ema beta={beta} must be in [0, 1), e.g. 0.9999; 0 is no averaging.")
  return lambda step: jnp.full(jnp.shape(step), beta, jnp.float32)


def power_gamma(sigma_rel: float) -> float:
  """The exponent of a power-function average: s^2 = (g + 1) / ((g + 2)^2 (g + 3)), solved for g.

  Karras et al. 2024 (arXiv 2312.02696), algorithm 2; sigma_rel = s is the width of the average as
  a share of the training so far.

  Raises:
    ValueError: for a sigma_rel outside (0, 12^-0.5), where no g > 0 has it.

  >>> round(power_gamma(0.05), 4)
  16.9722
  """
  if not 0 < sigma_rel < 12**-0.5:
    raise ValueError(
      f"sigma_rel={sigma_rel} must be between 0 and 0.2886 (a uniform average): 0.05 is usual."
    )
  t = sigma_rel**-2.0
  # One root is positive and the others are not; which ones are real does not matter.
  return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def power(sigma_rel: Width, batch_size: int) -> Decay:
  """beta = (1 - d / t)^(gamma + 1) after t images in batches of d.

  A profile t^gamma that grows with the training: initial weights never count, and the average is
  always over the same share of what was trained. With batches of one size, d / t is
  1 / (step + 1).

  Args:
    sigma_rel: relative width: 0.05 to 0.10 in EDM2, 0.05 in sCM.
    batch_size: d.

  Raises:
    ValueError: as `power_gamma`.
  """
  exponent = power_gamma(sigma_rel) + 1

  def decay(step):
    seen = batch_size * (jnp.asarray(step, jnp.float32) + 1)
    # By the logarithm: in float32 the power itself is 1.5 % off in 1 - beta after a million steps.
    # At the first update the logarithm is -inf, and beta is exactly 0.
    return jnp.exp(exponent * jnp.log1p(-batch_size / seen))

  return decay


def curriculum(
  curriculum: Callable[[ArrayLike], Array],
  s0: Count,
  mu0: Annotated[float, Range(0, 1, "()")],
  convention: str = "paper",
) -> Decay:
  """mu(k) = exp(s0 ln(mu0) / N(k)): the target network's average in consistency training (CM).

  Args:
    curriculum: step -> N, the number of noise levels (`times.square_root`).
    s0: the N that mu0 belongs to.
    mu0: the average's beta where N = s0; 0.9 on CIFAR-10, 0.95 elsewhere.
    convention: "paper" divides by N, "openai" by N - 1 as the released code does.
  """
  if not 0 < mu0 < 1:
    raise ValueError(f"mu0={mu0} must lie between 0 and 1; for other averages take `constant`.")
  if convention not in ("paper", "openai"):
    raise ValueError(f"Unknown convention {convention!r}. Choose from: paper, openai.")
  fewer = int(convention == "openai")

  def decay(step):
    return jnp.exp(s0 * jnp.log(mu0) / (curriculum(step) - fewer))

  return decay
