"""From samples in [-1, 1] to 8 bits: one of two rules, which a score is told with.

  round      floor(127.5 x + 128): to the nearest; EDM, EDM2 and StyleGAN
  truncate   floor(127.5 (x + 1)): half a level darker; ADM

Both end at 0 and 255. Published pipelines differ in it and seldom say so.
"""

import numpy as np

RULES = ("round", "truncate")


def to_uint8(samples: np.ndarray, rule: str) -> np.ndarray:
  """Images [n, h, w, c] in [-1, 1] as uint8.

  Raises:
    ValueError: for another rule, or values that are not finite.
  """
  if rule not in RULES:
    raise ValueError(f"Unknown rounding {rule!r}. Choose from: {', '.join(RULES)}.")
  if bad := int(np.sum(~np.isfinite(samples))):
    raise ValueError(
      f"{bad} of {samples.size} values of the samples are NaN or infinite: the model or the "
      "sampler has diverged, and no score would mean anything."
    )
  x = np.asarray(samples, np.float64)
  levels = 127.5 * x + 128 if rule == "round" else 127.5 * (x + 1)
  return np.clip(np.floor(levels), 0, 255).astype(np.uint8)
