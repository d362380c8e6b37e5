"""The latents of an autoencoder as data of std 0.5: two conventions, and which of them was used.

The mean z of an encoder, and its std times fresh noise, become latents (z - m) 0.5 / s per channel.
EDM2 (arXiv 2312.02696) and sCM (arXiv 2410.11081, appendix G.1) do this with the same autoencoder
but other m and s, since EDM2 feeds it images in [0, 1] and sCM, as it was trained, in [-1, 1]. A
network trained on one kind of latents is wrong on the other and nothing would say so: that is why
files of latents and checkpoints record the convention (`record`), and `check` compares.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from cmjax.types import Data, LossFn

# Of the draw in a step. Far from what losses take: fold_in(key, i) is split(key, n)[i] for i < n.
DRAW = 1_000_000
STD = 0.5  # of latents: sigma_data in both papers


class Convention(NamedTuple):
  """How images become latents.

  Attributes:
    name: a key of `CONVENTIONS`, or one of your own.
    input_range: lowest and highest value of the images that the autoencoder reads and writes.
    mean: m, of each channel of the encoder's output over a data set.
    std: s, likewise.
    vae: the autoencoder.
  """

  name: str
  input_range: tuple[float, float]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  vae: str = "stabilityai/sd-vae-ft-mse"


SCM = Convention("scm", (-1.0, 1.0), (1.56, -0.695, 0.483, 0.729), (5.27, 5.91, 4.21, 4.31))
EDM2 = Convention("edm2", (0.0, 1.0), (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28))
CONVENTIONS = {c.name: c for c in (SCM, EDM2)}


def normalize(z: Float[Array, "*b c"], convention: Convention = SCM) -> Float[Array, "*b c"]:
  """(z - m) 0.5 / s: from the encoder's output to latents.

  >>> import jax.numpy as jnp
  >>> normalize(jnp.array([[1.56, -0.695, 0.483, 0.729 + 4.31]])).round(4).tolist()
  [[0.0, 0.0, 0.0, 0.5]]
  """
  mean, std = _moments(z, convention)
  return (z - mean) * (STD / std)


def denormalize(
  latents: Float[Array, "*b c"], convention: Convention = SCM
) -> Float[Array, "*b c"]:
  """m + latents s / 0.5: from latents to what the decoder reads."""
  mean, std = _moments(latents, convention)
  return mean + latents * (std / STD)


def encode(
  vae_encode: Callable[[Array], tuple[Array, Array]],
  images: Float[Array, "b h w c"],
  key: Array | None,
  convention: Convention = SCM,
) -> Float[Array, "b h2 w2 z"]:
  """Latents of images in [-1, 1], drawn from what the encoder says of each.

  Args:
    vae_encode: images -> mean and std, e.g. `functools.partial(vae.encode, params)`.
    images: in [-1, 1], as everywhere, whatever the autoencoder reads.
    key: for the draw, a new one each time an image is seen; None: the mean.
    convention: by which they are made.
  """
  mean, std = moments(vae_encode, images, convention)
  return mean if key is None else draw(mean, std, key)


def moments(
  vae_encode: Callable[[Array], tuple[Array, Array]],
  images: Float[Array, "b h w c"],
  convention: Convention = SCM,
) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
  """Mean and std of the latents of images in [-1, 1]: what is kept of them on a disk."""
  low, high = convention.input_range
  mean, std = vae_encode(low + (images + 1) * ((high - low) / 2))
  _, s = _moments(mean, convention)
  return normalize(mean, convention), std * (STD / s)


def draw(mean: Data, std: Data, key: Array) -> Data:
  """mean + std N(0, 1): latents, of their `moments`."""
  # Flat: XLA compiles a 4-D draw on CPU 10 to 50 times as slowly.
  return mean + std * jax.random.normal(key, (mean.size,), mean.dtype).reshape(mean.shape)


def drawn(loss_fn: LossFn) -> LossFn:
  """A loss whose batches may hold the std of each latent, image_std: they are drawn from it first.

  The draw is a function of the step's key, as all noise is, and another one each time an image is
  seen. Batches without an image_std go through as they are.
  """

  def loss_of_draw(params, batch, key, step):
    if "image_std" in batch:
      rest = {name: array for name, array in batch.items() if name != "image_std"}
      key_draw = jax.random.fold_in(key, DRAW)
      batch = rest | {"image": draw(batch["image"], batch["image_std"], key_draw)}
    return loss_fn(params, batch, key, step)

  return loss_of_draw


def decode(
  vae_decode: Callable[[Array], Array],
  latents: Float[Array, "b h w z"],
  convention: Convention = SCM,
) -> Float[Array, "b h2 w2 c"]:
  """Images of latents, in [-1, 1] but for what the decoder overshoots; nothing is clipped.

  Args:
    vae_decode: latents -> images, e.g. `functools.partial(vae.decode, params)`.
    latents: as `encode` gives them.
    convention: by which they were made.
  """
  low, high = convention.input_range
  return (vae_decode(denormalize(latents, convention)) - low) * (2 / (high - low)) - 1


def record(convention: Convention = SCM) -> dict[str, Any]:
  """The convention as JSON can hold it, for a file of latents or a checkpoint."""
  fields = convention._asdict().items()
  return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}


def check(recorded: Mapping[str, Any], convention: Convention = SCM) -> None:
  """Raises ValueError if latents or weights were made by another convention.

  Args:
    recorded: what `record` gave, perhaps read back from JSON; further entries are ignored.
    convention: the one that is asked for.
  """
  expected = record(convention)
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  got = {name: plain(recorded[name]) for name in expected if name in recorded}
  wrong = [
    f"{name} {got[name]!r} (expected {value!r})"
    if name in got
    else f"no {name} (expected {value!r})"
    for name, value in expected.items()
    if got.get(name) != value
  ]
  if wrong:
    raise ValueError(
      f"Recorded is another latent convention than {convention.name!r}: {'; '.join(wrong)}. Take "
      f"the convention of the record (there are {', '.join(CONVENTIONS)}), or encode the images "
      "again."
    )


def _moments(z: Array, convention: Convention) -> tuple[Array, Array]:
  """m and s, ready to broadcast against z."""
  if z.shape[-1] != len(convention.mean):
    raise ValueError(
      f"Convention {convention.name!r} is for latents of {len(convention.mean)} channels; got "
      f"{z.shape}."
    )
  shape = (1,) * (z.ndim - 1) + (-1,)
  mean, std = (jnp.asarray(a, z.dtype).reshape(shape) for a in (convention.mean, convention.std))
  return mean, std
