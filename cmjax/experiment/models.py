"""The network and the data of a config."""

import contextlib
from collections.abc import Generator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import edm, latents, networks
from cmjax.base import sharding
from cmjax.data import mirror, pipeline, records, sources
from cmjax.experiment import decoding
from cmjax.experiment.sections import (
  Section,
  arguments,
  call,
  latent_convention,
  pick,
  read,
  sample_shape,
)
from cmjax.types import Batch, Network


def _records(
  path: str,
  *,
  split: str = "train",
  latents: str | None = None,
  vae: str | None = None,
  max_corrupt: int = 0,
  cache: str = mirror.CACHE,
) -> sources.Source:
  """`records.records`, of pixels or, by its name, of latents of one convention.

  `vae` is the file of the autoencoder that made the latents: for `decoder`, and compared by its
  sha256 with the one of the record.
  """
  data = records.records(path, split=split, max_corrupt=max_corrupt, cache=cache)
  _check_latents(data.latents, latents, path)
  decoding.check(data.latents, vae, path)
  return data


SOURCES = {
  "records": _records,
  "digits": sources.digits,
  "npz": sources.npz,
  "folder": sources.folder,
  "tfds": sources.tfds,
  "toy2d": sources.toy2d,
}
NETWORKS = {
  "mlp": networks.MLP,
  "ddpmpp": networks.DDPMpp,
  "adm": networks.ADM,
  "edm2": networks.EDM2,
  "dit": networks.DiT,
}
# What a tangent can have of its own.
PRECISION = ("dtype", "matmul_precision")
PRECONDITIONINGS = ("trigflow", "edm")


def network(config: ConfigDict, precision: Section | None = None) -> Network:
  """The network of `config.net`; `dtype` and `matmul_precision` are those of its body.

  `precision` has other ones, where the same network is wanted at another precision.

  Whatever `preconditioning` says, the network that comes back takes and gives TrigFlow's units;
  with "edm" the module inside embeds ln(sigma) / 4 and its output is EDM's F (`edm.as_trigflow`).
  """
  section = dict(config.net) | dict(precision or {})
  name, dtype, kwargs = read(section, "net", "dtype")
  matmul_precision = kwargs.pop("matmul_precision", None)
  kind = pick(PRECONDITIONINGS, kwargs.pop("preconditioning", "trigflow"), "net.preconditioning")
  module = pick(NETWORKS, name, "network (net.name)")
  make = lambda rngs: call(module, f"net ({name})", rngs=rngs, **kwargs)
  net = networks.as_network(make, dtype=dtype, matmul_precision=matmul_precision)
  if kind == "edm":
    return Network(net.init, edm.as_trigflow(net.apply, sigma_data=config.sigma_data))
  return net


def can_remat(config: ConfigDict) -> bool:
  """Whether the network of `config.net` can compute activations again instead of keeping them."""
  module = pick(NETWORKS, config.net.name, "network (net.name)")
  return "remat" in [p.name for p in arguments(module)]


def tangent_network(config: ConfigDict) -> Network | None:
  """The network at the precision of `config.loss.tangent`; None where that is its own."""
  wanted = precision(config.loss.get("tangent") or {})
  return None if wanted.items() <= precision(config.net).items() else network(config, wanted)


def precision(section: Section) -> dict[str, Any]:
  """What a section says of `PRECISION`; None says nothing."""
  return {key: section[key] for key in PRECISION if section.get(key, None) is not None}


def source(config: ConfigDict, split: str = "train") -> sources.Source:
  """A split of the data that `config.data` names, checked against the network.

  `config.data[name]`, where it is there, holds the arguments of that source: a config can have
  several ready, to be chosen by `--config.data.name`.
  """
  name, _, sections = read(config.data, "data", "flip")
  factory = pick(SOURCES, name, "data set (data.name)")
  data = call(factory, f"data.{name}", split=split, **dict(sections.get(name, {})))
  expected = sample_shape(config)
  if tuple(data.shape) != expected:
    raise ValueError(
      f"data {name!r} has samples of shape {tuple(data.shape)}, but net takes {expected}. Set "
      "net.resolution and net.in_channels (net.dim for points) to those of the data."
    )
  num_classes = config.net.get("num_classes", 0)
  if num_classes and data.num_classes != num_classes:
    raise ValueError(
      f"net.num_classes={num_classes} but data {name!r} has {data.num_classes or 'no'} classes. "
      f"Set net.num_classes={data.num_classes}, or take data with labels."
    )
  return data


def _check_latents(recorded: dict[str, Any] | None, wanted: str | None, path: str) -> None:
  """Raises if what a set holds is not what the config is for."""
  if wanted is None:
    if recorded is None:
      return
    raise ValueError(
      f"{path} holds latents of the convention {recorded['name']!r}, but the config says nothing "
      f"of latents: set data.records.latents={recorded['name']!r}, or take a set of pixels."
    )
  convention = pick(latents.CONVENTIONS, wanted, "convention (data.records.latents)")
  if recorded is None:
    raise ValueError(
      f"{path} holds pixels, but data.records.latents={wanted!r}. Prepare latents: python -m "
      "cmjax.data.prepare SOURCE --out DIR --latents VAE.safetensors; or set it to None."
    )
  try:
    latents.check(recorded, convention)
  except ValueError as error:
    raise ValueError(f"{path} (data.records.latents={wanted!r}): {error}") from None


def batches(
  config: ConfigDict, mesh: Mesh, start: int, data: sources.Source | None = None
) -> Generator[Batch]:
  """The global batches from step `start` on, laid out on the mesh; close it when done.

  `data` is the training split, where it is open already.
  """
  sharding.check_batch_size(config.batch_size, mesh)
  if config.data.flip and latent_convention(config):
    raise ValueError("data.flip=True: a mirrored latent is not a mirrored image's. Set it False.")
  dataset = pipeline.dataset(
    source(config) if data is None else data,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.data.flip,
    rows=sharding.local_rows(mesh, config.batch_size),
  )
  keys = ("image", *(["label"] if config.net.get("num_classes", 0) else []))
  keys += ("image_std",) if latent_convention(config) else ()
  host_batches = pipeline.batches(dataset, start=start)

  def to_mesh():
    with contextlib.closing(host_batches):
      for batch in host_batches:
        yield sharding.global_batch({key: batch[key] for key in keys}, mesh)

  return to_mesh()
