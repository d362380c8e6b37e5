"""The network and the data of a config, and the batches of an experiment."""

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Annotated, Any

from jax.sharding import Mesh

from cmjax import edm, latents, networks
from cmjax.base import parts, sharding
from cmjax.base.ranges import CountOrNone, Dtype, Place, Size, SizeOrNone, Where
from cmjax.data import manifest, mirror, pipeline, published_sets, records, sources, summary
from cmjax.experiment import decoding
from cmjax.experiment.fields import Experiment, Samples
from cmjax.experiment.sections import Section, arguments, call, pick, pick_part, read
from cmjax.types import Batch, Network


def _records(
  path: Annotated[str, Where(manifest.SCHEMES, empty=True)],
  *,
  split: str = "train",
  latents: str | None = None,
  vae: Place | None = None,
  max_corrupt: CountOrNone = 0,
  cache: Place = mirror.CACHE,
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
  **published_sets.SOURCES,
}
NETWORKS = {
  "mlp": networks.MLP,
  "ddpmpp": networks.DDPMpp,
  "adm": networks.ADM,
  "edm2": networks.EDM2,
  "dit": networks.DiT,
}
# What a section of a network may say, whatever the network.
ABOUT_NETWORK: dict[str, Any] = {
  "name": str,
  "dtype": Dtype,
  "matmul_precision": str | None,
  "preconditioning": str,
  **{key: Size for key in ("resolution", "in_channels", "dim")},
  "shape": tuple[Size, ...],
  "num_classes": SizeOrNone,
  "guidance": bool,
  "segment": bool,
}
# What a tangent can have of its own.
PRECISION = ("dtype", "matmul_precision")
# What a section says of samples and inputs; a network of the user's own need not take it.
DESCRIBES = ("resolution", "in_channels", "dim", "shape", "num_classes", "guidance", "segment")
PRECONDITIONINGS = ("trigflow", "edm")


def network(section: Section, sigma_data: float) -> Network:
  """The network of `config.net`; `dtype` and `matmul_precision` are those of its body.

  Whatever `preconditioning` says, the network that comes back takes and gives TrigFlow's units;
  with "edm" the module inside embeds ln(sigma) / 4 and its output is EDM's F (`edm.as_trigflow`).

  Its `at` gives the same network at another precision, or with `remat` where it has that.
  """
  if parts.was_handed_in(section.get("name")):
    refuse = parts.missing(section["name"], "network")
    return Network(refuse, refuse, inputs=inputs_of(section), name=section["name"])
  name, dtype, kwargs = read(section, "net", "dtype")
  matmul_precision = kwargs.pop("matmul_precision", None)
  kind = pick(PRECONDITIONINGS, kwargs.pop("preconditioning", "trigflow"), "net.preconditioning")
  module = pick_part(NETWORKS, name, "network (net.name)")
  accepted = [p.name for p in arguments(module)]
  make = functools.partial(call, module, f"net ({name})")
  body = dict(dtype=dtype, matmul_precision=matmul_precision)
  if name in NETWORKS:
    made = networks.from_nnx(functools.partial(make, **kwargs), **body)
  else:
    taken = {k: v for k, v in kwargs.items() if k in accepted or k not in DESCRIBES}
    sizes = dict(shape=sample_shape(section), num_classes=section.get("num_classes", 0))
    made = networks.from_part(module, make, taken, **sizes, **body)
  apply = edm.as_trigflow(made.apply, sigma_data=sigma_data) if kind == "edm" else made.apply
  options = {"dtype": dtype, "matmul_precision": matmul_precision}
  if "remat" in accepted:
    options["remat"] = kwargs.get("remat", False)
  return made._replace(
    apply=apply,
    at=lambda **changes: network({**section, **changes}, sigma_data),
    options=options,
    inputs=inputs_of(section) or made.inputs,
    name=name,
  )


def inputs_of(section: Section) -> tuple[str, ...]:
  """What a network's section says that it reads beside the label."""
  return tuple(key for key in ("guidance", "segment") if section.get(key))


def precision(section: Section) -> dict[str, Any]:
  """What a section says of `PRECISION`; None says nothing."""
  return {key: section[key] for key in PRECISION if section.get(key, None) is not None}


def samples(net: Section, data: Section) -> Samples:
  """What one sample is, by the sections of the network and of the data."""
  own = source_arguments(data)
  return Samples(
    shape=sample_shape(net),
    num_classes=net.get("num_classes", 0),
    latents=own.get("latents") or None,
    vae=own.get("vae"),
  )


def sample_shape(net: Section) -> tuple[int, ...]:
  """The shape of one sample, as the network takes it."""
  if "shape" in net:
    return tuple(net["shape"])
  if "resolution" in net and "in_channels" in net:
    return (net["resolution"], net["resolution"], net["in_channels"])
  if "dim" not in net:
    raise ValueError(
      "config.net needs the shape of one sample: net.dim for points, net.resolution and "
      "net.in_channels for images, or net.shape=(h, w, c)."
    )
  return (net["dim"],)


def source_arguments(section: Section) -> dict[str, Any]:
  """The arguments of the source that `config.data` names: `data.toy2d` has those of "toy2d".

  Of one's own source, "my_package.sets:mine", they are `data.mine`: no key of a config has a dot.
  """
  name = section.get("name") or ""
  return dict(section.get(name) or section.get(name.rpartition(":")[2]) or {})


def source(section: Section, sigma_data: float) -> Callable[[str], sources.Source]:
  """split -> the data that `config.data` names, opened at the first call, which says what it is.

  `source_arguments` has its arguments: a config can have those of several ready, to be chosen by
  `--config.data.name`.
  """
  if parts.was_handed_in(section.get("name")):
    return parts.missing(section["name"], "source")
  name, flip, sections = read(section, "data", "flip")
  factory = pick_part(SOURCES, name, "data set (data.name)")
  kwargs = source_arguments({"name": name, **sections})
  if "split" in kwargs:
    raise ValueError(f"data.{name} takes no split: training reads 'train', scores read 'test' too.")
  if flip and kwargs.get("latents"):
    raise ValueError("data.flip=True: a mirrored latent is not a mirrored image's. Set it False.")

  @functools.cache
  def of_split(split: str) -> sources.Source:
    data = call(factory, f"data.{name}", split=split, **kwargs)
    if sharding.process()[0] == 0:
      summary.log(data, f"data.{name} ({split})", sigma_data=sigma_data)
    return data

  return of_split


def opened(experiment: Experiment, split: str = "train") -> sources.Source:
  """A split of an experiment's data, checked against what its network takes."""
  data, samples = experiment.source(split), experiment.samples
  name = experiment.record.get("data", {}).get("name", "")
  if tuple(data.shape) != samples.shape:
    raise ValueError(
      f"data {name!r} has samples of shape {tuple(data.shape)}, but net takes {samples.shape}. Set "
      "net.resolution and net.in_channels (net.dim for points) to those of the data."
    )
  if samples.num_classes and data.num_classes != samples.num_classes:
    raise ValueError(
      f"net.num_classes={samples.num_classes} but data {name!r} has {data.num_classes or 'no'} "
      f"classes. Set net.num_classes={data.num_classes}, or take data with labels."
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
  experiment: Experiment, mesh: Mesh, start: int, data: sources.Source | None = None
) -> Generator[Batch]:
  """The global batches from step `start` on, laid out on the mesh; close it when done.

  `data` is the training split, where it is open already.
  """
  run, samples = experiment.run, experiment.samples
  sharding.check_batch_size(run.batch_size, mesh)
  dataset = pipeline.dataset(
    opened(experiment) if data is None else data,
    batch_size=run.batch_size,
    seed=run.seed,
    flip=run.flip,
    rows=sharding.local_rows(mesh, run.batch_size),
  )
  keys = ("image", *(["label"] if samples.num_classes else []))
  keys += ("image_std",) if samples.latents else ()
  host_batches = pipeline.batches(
    dataset, start=start, num_threads=run.read_threads, prefetch=run.prefetch
  )

  def to_mesh():
    with contextlib.closing(host_batches):
      for batch in host_batches:
        yield sharding.global_batch({key: batch[key] for key in keys}, mesh)

  return to_mesh()
