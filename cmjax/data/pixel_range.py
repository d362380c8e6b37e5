"""Whether pixels have the range that is read out of them: a wrong one changes every score.

uint8 pixels are read as x / 127.5 - 1, and floats as they are, in [-1, 1]. Images scaled to [0, 1]
are neither, whatever their type, and nothing later would notice.
"""

import numpy as np

CHANNELS = (1, 3)


def check(images: np.ndarray, where: str) -> None:
  """Raises for images of a range that cannot be meant.

  Args:
    images: [n, h, w, c], uint8 or floats; points are not looked at, and of floats that have not 1
      or 3 channels, such as latents, it is only asked that they be finite.
    where: they are from, for the error.

  Raises:
    ValueError: floats that are not finite, or in [0, 1], or beyond [-10, 10]; bytes of 0 and 1.
  """
  if images.ndim < 3 or not images.size:
    return
  low, high = images.min(), images.max()  # nan where any is
  if images.dtype == np.uint8:
    if high == 1:
      raise ValueError(
        f"{where} has no values but 0 and 1, of 0 to 255: nearly black. Multiply by 255."
      )
    return
  if not np.isfinite([low, high]).all():
    raise ValueError(f"{where} has values that are not finite. Remove those images.")
  if images.ndim > 3 and images.shape[-1] not in CHANNELS:
    return  # latents, or what else has no range of its own
  if max(-low, high) > 10:
    raise ValueError(
      f"{where}: floats must be in [-1, 1], got up to {max(-low, high):g}. Save as uint8, or "
      "x / 127.5 - 1."
    )
  if low >= 0 and 0 < high <= 1:
    raise ValueError(
      f"{where}: floats must be in [-1, 1], but all are in [{low:.3g}, {high:.3g}]. Scale them: "
      "2 x - 1."
    )
