"""Trained models in one file: those that cmjax brings, by their names, and what a run exports.

A model is a .safetensors file that `cmjax convert --export` wrote. Its metadata hold the config of
the run, as data, and the names of the classes. Beside one of ours lies its card, NAME.json: what it
was trained on, by which commands, its scores, and the sha256 of the file.
"""

import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from cmjax import experiment
from cmjax.base import json_files, paths, sharding
from cmjax.convert import detect, files
from cmjax.experiment import Experiment
from cmjax.program import convert, drawing

logger = logging.getLogger("cmjax")

FOLDER = Path(__file__).parents[1] / "models"
SUFFIX = ".safetensors"


class Stored(NamedTuple):
  """A model as its file has it.

  Attributes:
    name: of the model.
    path: of its file.
    record: the config of the run that it is of.
    class_names: of its classes, in their order; () where it has none.
    found: its network and its tensors.
    card: what is known of one of ours; {} of others.
  """

  name: str
  path: Path
  record: dict[str, Any]
  class_names: tuple[str, ...]
  found: detect.Found
  card: Mapping[str, Any]


def names() -> list[str]:
  """The models that cmjax brings."""
  return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read(spec: str | os.PathLike[str]) -> Stored:
  """A model, checked; nothing in its file is executed.

  Args:
    spec: the name of one of ours, or the path of a .safetensors file that a run was exported to.

  Raises:
    ValueError: there is no such model, or its file is none that can be drawn from; in one line.
  """
  path = _find(os.fspath(spec))
  return read_file(path)._replace(card=_card(path))


def read_file(path: Path) -> Stored:
  """A model of a file, without a card."""
  foreign = files.read(path)
  try:
    weights = foreign.networks[files.choose(foreign.networks, None)]
    if detect.METADATA not in weights.options:
      raise ValueError("it is not of `cmjax convert --export`: convert it first, `cmjax convert`")
    found = detect.detect(weights)
    record, class_names = _said(weights.options[detect.METADATA])
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  record |= {"net": found.net, "sigma_data": found.sigma_data}
  return Stored(path.stem, path, record, class_names, found, {})


def _find(spec: str) -> Path:
  if spec in names():
    return FOLDER / f"{spec}{SUFFIX}"
  path = paths.local(spec, "--model")
  if path.suffix == SUFFIX and path.is_file():
    return path
  near = difflib.get_close_matches(spec, names(), 1)
  advice = f"Did you mean {near[0]}?" if near else f"cmjax's own are: {', '.join(names())}."
  raise ValueError(
    f"There is no model {spec!r}. {advice} A file of your own ends in {SUFFIX}: "
    "`cmjax convert --export` writes one."
  )


def _card(path: Path) -> dict[str, Any]:
  """The card of one of our models, which says its sha256; {} of other files."""
  if path.parent != FOLDER:
    return {}
  card = json_files.read(path.with_suffix(".json"))
  if not isinstance(card, dict) or card.get("sha256") != files.digest(path):
    raise ValueError(f"{path} is not the file that its card is of: install cmjax again.")
  return card


def _said(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The config and the class names in the metadata of an exported file."""
  said = json_files.parse(text.encode())
  record = said.get("config") if isinstance(said, dict) else None
  if not isinstance(record, dict):
    raise ValueError(
      "it has no config, as files of earlier versions: `cmjax convert FILE --to RUN`, then "
      "`cmjax sample --workdir=RUN`"
    )
  class_names = said.get("class_names") or []
  if not isinstance(class_names, list) or not all(isinstance(one, str) for one in class_names):
    raise ValueError("its class_names are no list of names")
  return record, tuple(class_names)


def sample(exp: Experiment, spec: str | os.PathLike[str], **drawn: Any) -> list[epath.Path]:
  """Draws samples from a model, as `program.sample.sample` does from a run.

  Args:
    exp: the experiment of the model's config; its samplers are used.
    spec: which model.
    **drawn: how many, which, and where to: the fields of `drawing.Drawn`. Without `out` they go to
      the folder samples/NAME. Without a sampler's name one of ours takes the one of its card.
  """
  wanted = drawing.Drawn(**drawn)
  drawing.check(wanted)
  stored, mesh = read(spec), experiment.make_mesh(exp.run)
  num_classes = exp.samples.num_classes
  if len(stored.class_names) not in (0, num_classes):
    raise ValueError(
      f"{stored.path} has {len(stored.class_names)} class names, and its network {num_classes} "
      "classes."
    )
  try:
    params = convert.network_params(exp, stored.found)
  except ValueError as error:
    raise ValueError(f"{stored.path}: {error}") from None
  if stored.card and wanted.name is None:  # one picture, soon: each sampler is compiled
    wanted = wanted._replace(name=stored.card["sampler"])
  if stored.card and sharding.process()[0] == 0:
    logger.info("%s: %s", stored.name, stored.card["about"])
  weights = drawing.Weights(
    *(exp, mesh, jax.device_put(params, sharding.shard_params(params, mesh)), {}),
    class_names=stored.class_names,
    made_of={"weights": {"sha256": files.digest(stored.path)}},
    stem="",
    folder=epath.Path("samples") / stored.name,
  )
  return drawing.draw(weights, wanted)
