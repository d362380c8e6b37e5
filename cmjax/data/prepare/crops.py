"""From pictures of any size to squares of one resolution, as the papers' data sets were made.

Which of these was used changes every pixel, and with them every score: EDM's ImageNet-64 is
`center-crop` with Lanczos, that of ADM, EDM2 and sCM is `center-crop-dhariwal`.
"""

from PIL import Image

FILTERS = {
  "nearest": Image.Resampling.NEAREST,
  "box": Image.Resampling.BOX,
  "bilinear": Image.Resampling.BILINEAR,
  "hamming": Image.Resampling.HAMMING,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}
TRANSFORMS = ("none", "center-crop", "center-crop-dhariwal")
DEFAULT_FILTERS = {"none": None, "center-crop": "lanczos", "center-crop-dhariwal": "bicubic"}


def check(transform: str, resolution: int | None, filter: str | None) -> str | None:
  """The name of the filter to use; raises a ValueError for arguments that do not go together."""
  if transform not in TRANSFORMS:
    raise ValueError(f"Unknown transform {transform!r}. Choose from: {', '.join(TRANSFORMS)}.")
  if filter is not None and filter not in FILTERS:
    raise ValueError(f"Unknown filter {filter!r}. Choose from: {', '.join(FILTERS)}.")
  if transform == "none" and (resolution is not None or filter is not None):
    raise ValueError(
      "transform 'none' leaves images as they are: it takes no resolution and no filter. To resize "
      "them take center-crop or center-crop-dhariwal."
    )
  if transform != "none" and (resolution is None or resolution < 1):
    raise ValueError(f"transform {transform!r} needs a resolution, such as 64; got {resolution}.")
  if transform == "center-crop-dhariwal" and filter not in (None, "bicubic"):
    raise ValueError(
      f"center-crop-dhariwal is defined with bicubic; with {filter} it would be another data set. "
      "Take center-crop for other filters."
    )
  return filter or DEFAULT_FILTERS[transform]


def apply(
  image: Image.Image, transform: str, resolution: int | None, filter: str | None
) -> Image.Image:
  """The image under arguments that `check` has passed.

  >>> apply(Image.new("L", (50, 31)), "center-crop-dhariwal", 8, "bicubic").size
  (8, 8)
  """
  if transform == "none":
    return image
  assert resolution is not None and filter is not None, "check comes first"
  if transform == "center-crop":
    return center_crop(image, resolution, FILTERS[filter])
  return center_crop_dhariwal(image, resolution)


def center_crop(image: Image.Image, resolution: int, filter: Image.Resampling) -> Image.Image:
  """The largest square in the middle, resized: EDM's, there with Lanczos (2022)."""
  (width, height), side = image.size, min(image.size)
  left, top = (width - side) // 2, (height - side) // 2
  return image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)


def center_crop_dhariwal(image: Image.Image, resolution: int) -> Image.Image:
  """ADM's preprocessing (Dhariwal and Nichol 2021), which EDM2 and sCM have too.

  Sides are halved (rounded down) by averaging while the shorter is at least twice the resolution;
  then the shorter is brought to the resolution by bicubic interpolation, and the middle is cut out.
  """
  while min(image.size) >= 2 * resolution:
    image = image.resize((image.width // 2, image.height // 2), FILTERS["box"])
  scale = resolution / min(image.size)
  image = image.resize(
    (round(image.width * scale), round(image.height * scale)), FILTERS["bicubic"]
  )
  left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
  return image.crop((left, top, left + resolution, top + resolution))
