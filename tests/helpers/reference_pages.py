"""The pages of docs/reference that are made from the code.

After a setting, a flag or its docstring was changed:

  PYTHONPATH=.:tests python -m helpers.reference_pages
"""

import importlib
import inspect
import re
from pathlib import Path

from cmjax import ema, pages
from cmjax.base import ranges, sharding
from cmjax.commands import cli, common
from cmjax.experiment import declared, evaluation, methods, models, optimizers, run, sampling
from cmjax.experiment.fields import Run
from cmjax.losses import distribution, lpips
from cmjax.training import optim

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
# What a factory takes and the program hands in, whatever the section; or a section of its own.
HANDED_IN = {"sigma_data", "split", "devices", "num_segments", "emas", "target", "loss_scale"}
HANDED_IN |= {"shape", "times"}
# What the docstrings leave to the name, since it means the same everywhere.
EVERYWHERE = {
  "P_mean": "mean of ln sigma",
  "P_std": "standard deviation of ln sigma",
  "sigma_min": "the smallest noise level",
  "sigma_max": "the largest noise level",
  "rho": "how close levels lie at low noise: sigma^(1/rho) is evenly spaced",
  "num_samples": "how many samples",
  "batch_size": "how many samples at a time, on all devices together",
  "num_batches": "how many batches are timed",
  "num_steps": "steps of the sampler",
  "resolution": "side of the images",
  "in_channels": "channels of the images",
  "label_dropout": "share of samples whose class is dropped",
  "h": "step of the difference",
  "N": "number of levels",
  "beta": "the average keeps this share of itself at each step",
  "scale": "of the guidance; 1 is none",
  "interval": "angles between which there is guidance; None: everywhere",
  "workdir": "of the run of the worse network",
  "ema": "which average of it",
  "name": "of what it is, below",
  "lr": "the highest learning rate",
  "b1": "decay of Adam's first moment",
  "b2": "decay of Adam's second moment",
  "eps": "added to the root of the second moment",
  "clip_norm": "the largest norm of the gradient; None: it is not clipped",
  "warmup_steps": "steps in which the rate rises from 0",
  "decay_steps": "after so many the rate falls with the square root of the steps",
  "half_life_images": "images after which parameters count half",
  "rampup_ratio": "the half-life is at most this share of the images seen; None: no limit",
  "every_steps": "how often",
  "dtype": "of what is stored",
  "mid_times": "angles of the steps between noise and data",
  "mid_sigmas": "the same as noise levels",
  "channels": "width of the embedding of t",
  "bias": "the log weight to start from",
  "path": "where the data are",
  "latents": 'convention of latents, "scm" or "edm2"; None: of the manifest',
  "vae": "file of the autoencoder, to decode samples",
  "max_corrupt": "how many damaged records are replaced",
  "cache": "folder on a disk in which a set in a bucket is mirrored",
  "distribution": "checkerboard, two_spirals or gaussian_mixture",
  "num_points": "how many points there are",
  "seed": "of the points",
  "url": "another address of the archive",
}
TYPED = {bool, int, float, str, tuple}
TYPES = {bool: "true or false", str: "text", int: "whole number", float: "number"}
NONE = type(None)


# --- what the code says of a setting ---


def documented(factory):
  """{argument: what it is} of a factory, of the lines of its docstring."""
  while hasattr(factory, "func"):
    factory = factory.func
  found, name = {}, ""
  texts = [inspect.getdoc(factory) or ""]
  if inspect.isclass(factory):
    texts.append(inspect.getdoc(factory.__init__) or "")
  for text in texts:
    section = re.search(r"(?ms)^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text)
    for line in section[1].splitlines() if section else ():
      if match := re.match(r"  (\w+): (.*)", line):
        name, found[match[1]] = match[1], match[2]
      elif name and line.strip():
        found[name] += f" {line.strip()}"
  return found


def allowed(hint):
  """What an annotation allows, in words."""
  said = []
  for option in ranges.options(hint):
    if option.type not in TYPED | {NONE}:
      continue
    bounds = option.range.words() if option.range else ""
    if option.where:
      said.append("path")
    elif option.type is NONE:
      said.append("None")
    elif option.type is tuple:
      inner = [allowed(item) for item in option.items if item is not ...]
      said.append(f"tuple of {' and '.join(dict.fromkeys(inner))}" if inner else "tuple")
    else:
      said.append(", ".join(filter(None, (TYPES.get(option.type, "any"), bounds))))
  return " or ".join(dict.fromkeys(said))


def settings(factory):
  """[(key, default, allowed, what it is)] of what a section can set of a factory."""
  hints = ranges.of(factory)
  texts = documented(factory)
  rows = []
  for name, parameter in declared_parameters(factory).items():
    if name in HANDED_IN or name not in hints or not can_be_set(hints[name]):
      continue
    default = parameter.default
    shown = "required" if default is parameter.empty else f"`{default!r}`"
    text = texts.get(name) or EVERYWHERE.get(name, "")
    rows.append((name, shown, allowed(hints[name]), text))
  return rows


def can_be_set(hint):
  """Whether a flag can have a value of what an annotation allows."""
  return bool({option.type for option in ranges.options(hint)} & TYPED)


def declared_parameters(factory):
  target = factory
  while hasattr(target, "func"):
    target = target.func
  if inspect.isclass(target) and not hasattr(target, "_fields"):
    factory = target.__init__
  return inspect.signature(factory).parameters


def table(rows):
  lines = ["| key | default | allowed | what it is |", "|---|---|---|---|"]
  cell = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
  lines += [f"| `{key}` | {cell(d)} | {cell(a)} | {cell(what)} |" for key, d, a, what in rows]
  return "\n".join(lines) if rows else "No settings of its own."


def summary(factory):
  while hasattr(factory, "func"):
    factory = factory.func
  return (inspect.getdoc(factory) or "").split("\n")[0]


def choices(path, factories, level="###"):
  """A heading and a table for each name that a section can have."""
  parts, named = [], {}
  for name, takers in factories.items():
    named.setdefault(takers if isinstance(takers, tuple) else (takers,), []).append(f'"{name}"')
  for takers, names in named.items():
    rows = {row[0]: row for taker in takers for row in settings(taker)}
    parts += [f"{level} `{path}={' or '.join(names)}`", summary(takers[0]), table(rows.values())]
  return "\n\n".join(filter(None, parts))


def plain(path, hints, texts=()):
  """A table of settings that have annotations alone."""
  texts = EVERYWHERE | dict(texts)
  return table([(f"{path}{key}", "", allowed(hint), texts.get(key, "")) for key, hint in hints])


# --- the page of the configuration ---


def numbers():
  """The table of what a config sets of the run itself."""
  hints, texts, page = ranges.of(Run), documented(Run), pages.shared("base")
  rows = []
  for field, path in run.NUMBERS.items():
    if field == "mesh":
      continue
    value = page
    for key in path:
      value = value[key] if value is not None and key in value else None
    default = Run._field_defaults.get(field, "")
    given = value if value is not None else default
    shown = "of the page" if given == "" else f"`{given!r}`"
    rows.append((".".join(path), shown, allowed(hints[field]), texts[field]))
  return table(rows)


def losses():
  found = {}
  for name, row in methods.METHODS.items():
    takers = tuple(taker for taker in row.takes if callable(taker))
    found[name] = takers
  return found


NETWORK = {
  "name": "which network, below; or a part of yours, package.module:Name",
  "dtype": "of the body: float32, bfloat16 or float16",
  "matmul_precision": 'of products: "highest" is float32 on every device',
  "preconditioning": '"trigflow", or "edm" for networks that are scaled as EDM scales them',
  "shape": "of one sample, for a network of yours",
  "dim": "of a point, for the MLP",
  "num_classes": "0: without labels",
  "guidance": "whether the scale of guidance is an input",
  "segment": "whether the segment of multistep sCD is an input",
}
EVALUATOR = {
  "name": "what to measure, below",
  "every_steps": "how often",
  "samplers": "which of config.samplers",
  "emas": "which of config.ema",
  "at_start": "whether at step 0 too",
}
SCORER = {
  "scores": "which scores: frechet, sfid, kernel, precision_recall, density_coverage, ...",
  "per_class": "whether the card has each class too",
  "features": "pixels, classifier, inception, dinov2, efficientnet_lite0",
  "weights": "file of the network; None: the evaluator is off",
  "variant": "resize and normalisation of the network",
  "rounding": 'to 8 bits: "round" (EDM) or "truncate" (ADM)',
  "reference": '"train", or a file of statistics',
  "floor": "whether held-out images are scored too",
  "num_subsets": "of the kernel distance",
  "subset_size": "of the kernel distance",
  "k": "neighbours of precision and recall",
  "k_density": "neighbours of density and coverage",
  "num_splits": "parts of the Inception score",
}


def configuration():
  """The text of docs/reference/configuration.md."""
  weightings = {name: getattr(methods.weighting, name) for name in methods.WEIGHTINGS}
  schedules = {"constant": optim.constant, "inverse_sqrt": optim.inverse_sqrt}
  others = ", ".join(f"`{name}`" for name in optimizers.OPTAX_OPTIMIZERS)
  rates = ", ".join(f"`{name}`" for name in optimizers.OPTAX_SCHEDULES)
  few = {name: (row.draw, row.times) for name, row in sampling.SAMPLERS.items()}
  evaluators = {name: row.arguments_of for name, row in evaluation.EVALUATORS.items()}
  vsd = {"vsd": distribution.loss}
  targets = {"constant": ema.constant, "curriculum": ema.curriculum}
  distances = methods.DISTANCES | {"lpips": lpips.distance}
  stored = {"workdir": "of the run that has it; empty: none", "ema": "which average of it"}
  intro = """# Configuration

This page is made from the code, by `tests/helpers/reference_pages.py`.

A config is what a page in `configs/` returns. `cmjax show --config=NAME` prints a whole one.
Set any key on the command line: `--config.optim.lr=3e-4`.
A key that is not there, or a value that is not allowed, is refused with the choices.

A section with a `name` takes the keys of what it names.
*Required* keys have no default in the code: the pages set them.
A key that stands under no name of its section belongs to all of them."""
  parts = [
    intro,
    "## The run",
    numbers(),
    "## net",
    "What every network takes:",
    plain("", models.ABOUT_NETWORK.items(), NETWORK),
    choices("net.name", models.NETWORKS),
    "## loss",
    "The method. Sections inside of it follow below.",
    choices("loss.name", losses()),
    "### Sections of loss",
    'Each is a section with a name. Where it needs no more, `loss.weighting="learned"` is enough.',
    choices("loss.tangent.name", methods.TANGENTS, "####"),
    choices("loss.pairs.name", methods.PAIRS, "####"),
    choices("loss.curriculum.name", methods.CURRICULA, "####"),
    choices("loss.distance.name", distances, "####"),
    choices("loss.target.name", targets, "####"),
    choices("loss.weighting.name", weightings, "####"),
    choices("loss.proposal.name", methods.PROPOSALS, "####"),
    choices("loss", vsd, "####").replace('`loss="vsd"`', "`loss.vsd`"),
    "## teacher",
    "The teacher that is asked in every step, and where the first weights come from (`init_from`).",
    plain("", declared.STORED.items(), stored),
    "## data",
    "`data.name` names one of these. Its settings are in a section of that name.",
    choices("data.name", models.SOURCES),
    "## optim",
    plain("", optimizers.RATE.items()),
    choices("optim.name", optimizers.OPTIMIZERS),
    f"Any optimizer of optax can be named, with optax's own arguments: {others}.",
    choices("optim.schedule.name", schedules),
    f"Any of these schedules of optax can be named: {rates}.",
    "## ema",
    "Averages of the parameters: `ema.NAME` is a section for each.",
    choices("ema.NAME.name", optimizers.AVERAGES),
    "## snapshots",
    table(settings(optimizers.make_plan)),
    "## samplers",
    "`samplers.NAME` is a section for each. All of them take `searched`: whether to use the times "
    "that `cmjax search` found.",
    choices("samplers.NAME.name", few),
    "### Guidance of a sampler",
    *(
      f'#### `samplers.NAME.guidance.name="{name}"`\n\n{plain("", hints.items())}'
      for name, hints in sampling.GUIDANCE.items()
    ),
    "## evals",
    "Evaluators: `evals.NAME` is a section for each. What all of them take:",
    plain("", evaluation.ABOUT_EVALUATOR.items(), EVALUATOR),
    choices("evals.NAME.name", evaluators),
    "### What `frechet` takes beside",
    plain("", evaluation.SCORER.items(), SCORER),
    "## mesh",
    table(settings(sharding.make_mesh)),
  ]
  return "\n\n".join(parts) + "\n"


# --- the page of the commands ---


def flags(verb):
  module = importlib.import_module(f"cmjax.commands.{verb}")
  lines = ["| flag | default | what it does |", "|---|---|---|"]
  lines.append(f"| `--config` | | {module.CONFIG_FROM.value} |")
  for flag in (*module.FLAGS, *common.ALWAYS):
    default = "" if flag.default in (None, False) else f"`{flag.default}`"
    lines.append(f"| `--{flag.name}` | {default} | {flag.help} |")
  return "\n".join(lines)


def of_docstring(verb):
  """A verb's own words: its indented lines are commands."""
  file = cli.FILES.get(verb, verb)
  text = (importlib.import_module(f"cmjax.commands.{file}").__doc__ or "").strip()
  return re.sub(r"(?m)(?:^  .*\n?)+", lambda m: as_code(m[0]), text + "\n").strip()


def as_code(block):
  lines = [line[2:] for line in block.rstrip("\n").splitlines()]
  return "\n".join(["```text", *lines, "```", ""])


def commands():
  """The text of docs/reference/commands.md."""
  parts = [
    "# Commands",
    "This page is made from the code, by `tests/helpers/reference_pages.py`.",
    "`cmjax VERB --help` prints the flags of a verb. `python -m cmjax` is the same program, and "
    "`python -m cmjax.main --mode=VERB` runs the verbs that have a config.",
    "`--config.KEY=VALUE` sets a value of the config: [Configuration](configuration.md).",
  ]
  for verb, words in (cli.EXPERIMENTS | cli.TOOLS).items():
    parts += [f"## cmjax {verb}", f"*{words[0].upper()}{words[1:]}.*", of_docstring(verb)]
    if verb in cli.EXPERIMENTS:
      parts.append(flags(verb))
    else:
      parts.append(f"`cmjax {verb} --help` has the arguments.")
  return "\n\n".join(parts) + "\n"


PAGES = {"configuration.md": configuration, "commands.md": commands}


def write():
  """Writes the pages."""
  for name, text in PAGES.items():
    (FOLDER / name).write_text(text())


if __name__ == "__main__":
  write()
