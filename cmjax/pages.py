"""Config pages: one file an experiment, found by name or by path.

  config = pages.load("cifar10_sct")         # a page of cmjax, by its name
  config = pages.load("imagenet64_sct:xl")   # one of its variants
  config = pages.load("own_images_scd:64:12000")  # a variant, for that many images
  config = pages.load("my/page.py:smoke")    # a page of your own, made small
  config = pages.load("runs/a/config.json")  # what a run was trained with

A page is a Python file with `get_config() -> ConfigDict`. Its settings begin with what the pages of
its data set share, `pages.shared("cifar10")`, and it says where it differs. A page with variants
lists them, VARIANTS = ("s", "m"), and has `get_config(variant="s")`. Where its settings follow how
many images there are, it takes `num_images` as well.
"""

import contextlib
import difflib
import inspect
import runpy
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cmjax.base import json_files, paths, printable

PACKAGE = Path(__file__).parent
COUNT = "num_images"  # the argument of a page whose settings follow how many images there are

# What `smoke` leaves of a config.
STEPS = 4
EVERY = 2
BATCH_SIZE = 16  # of 8 devices too
NUM_SAMPLES = 64
NETWORKS: dict[str, dict[str, Any]] = {
  "mlp": dict(width=16, depth=1),
  "ddpmpp": dict(channels=8, num_blocks=1),
  "adm": dict(channels=8, num_blocks=1, channels_per_head=8),
  "edm2": dict(channels=8, num_blocks=1, channels_per_head=8),
  "dit": dict(size=None, depth=1, width=16, num_heads=2),
}


def load(spec: str | Path) -> ConfigDict:
  """The locked config of a page.

  Args:
    spec: the name of a page of cmjax, the path of a .py page, or the path of a run's config.json;
      then a colon and a variant, if one is wanted. Every page has the variant `smoke`.

  Raises:
    ValueError: no such page or variant, or an error inside the page; always in one line.
  """
  path, variant = _find(str(spec))
  config = _stored(path, variant) if path.suffix == ".json" else _config_of(path, variant)
  return config.lock()


def shared(name: str) -> ConfigDict:
  """What the pages of a data set share: the config of configs/shared/<name>.py, open to changes."""
  name, _, variant = name.partition(":")
  places = {path.stem: path for path in (folder() / "shared").glob("*.py")}
  if name not in places:
    raise ValueError(f"No shared page {name!r}. Choose from: {', '.join(sorted(places))}.")
  return _config_of(places[name], variant)


def names() -> list[str]:
  """The pages of cmjax."""
  return sorted(path.stem for path in folder().glob("*.py"))


def variants(name: str) -> tuple[str, ...]:
  """The variants that a page of cmjax lists; beside them every page has `smoke`."""
  return tuple(_page(_find(name)[0]).get("VARIANTS", ()))


def command_for(workdir: str | Path) -> str | None:
  """The command that makes the run of a workdir, where the pages know one.

  It is the page that the workdir is named after, `runs/cifar10_teacher` and
  `runs/imagenet64_teacher_s`; a page beside the workdir, `photos/teacher.py` of `photos/teacher`;
  or what a page of cmjax says that it needs first.
  """
  text = str(workdir).rstrip("/")
  name, own = text.rpartition("/")[2], Path(f"{text}.py")
  if "://" not in text and own.is_file():
    return f"cmjax train --config={own} --workdir={text}"
  for page in names():
    specs = {page: page, **{f"{page}_{variant}": f"{page}:{variant}" for variant in variants(page)}}
    if name in specs:
      return f"cmjax train --config={specs[name]} --workdir={text}"
  needs = (needs_first(page) or "" for page in names())
  return next((line for line in needs if line.endswith(f" --to {text}")), None)


def needs_first(name: str) -> str | None:
  """What a page of cmjax says that its command needs: the rest of its line "Needs first:"."""
  lines = (folder() / f"{name}.py").read_text(encoding="utf-8").splitlines()
  start = "Needs first: "
  return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def folder() -> Path:
  """Where the pages of cmjax are: in the package, or beside it in a clone."""
  installed = PACKAGE / "configs"
  return installed if installed.is_dir() else PACKAGE.parent / "configs"


def show(config: ConfigDict) -> str:
  """All settings of a config in order, a `key = value` a line."""
  return "\n".join(f"{key} = {value!r}" for key, value in _flat(config.to_dict()).items())


def differences(a: ConfigDict, b: ConfigDict) -> str:
  """The settings in which two configs differ: key, a's value, b's value; "-" where it has none.

  A list and a tuple are the same here, since a stored config has lists for tuples.
  """
  rows = [(key, *values) for key, values in differing([a.to_dict(), b.to_dict()]).items()]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda row: "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
  return "\n".join(pad(row).rstrip() for row in rows)


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
  """{key: the value of each} of the settings in which configs differ; "-" where one has none."""
  flats, found = [_flat(config) for config in configs], {}
  for key in sorted({key for flat in flats for key in flat}):
    if not all(key in flat and _same(flat[key], flats[0].get(key)) for flat in flats):
      found[key] = [repr(flat[key]) if key in flat else "-" for flat in flats]
  return found


def smoke(config: ConfigDict) -> ConfigDict:
  """The same experiment made small: a few steps of a small network, few samples.

  It shows in a minute whether all parts of a config build and run; its scores mean nothing. The
  data is not made smaller. Nor is a network that is not one of `NETWORKS`.
  """
  settings = _shorter(config.to_dict())
  settings["total_steps"] = STEPS
  if settings.get("batch_size", 0) > BATCH_SIZE:
    settings["batch_size"] = BATCH_SIZE
    if settings.get("microbatch"):
      settings["microbatch"] = BATCH_SIZE // 2
  if settings.get("steps_per_dispatch", 1) > EVERY:
    settings["steps_per_dispatch"] = EVERY
  _shrink_network(settings.get("net") or {})
  _shorten_stages(settings.get("loss") or {})
  for section in (settings.get("samplers") or {}).values():
    _at_most(section, num_steps=3)
  for section in (settings.get("evals") or {}).values():
    _shrink_evaluator(section)
  return ConfigDict(settings)


def _shorter(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings with intervals and warm-ups that fit into `STEPS`, in all sections."""
  shorter = {}
  for key, value in settings.items():
    if isinstance(value, Mapping):
      value = _shorter(value)
    elif value and key.endswith("every_steps"):
      value = EVERY
    elif value and key == "warmup_steps":
      value = min(value, STEPS // 2)
    shorter[key] = value
  return shorter


def _shrink_network(net: dict[str, Any]) -> None:
  net.update(NETWORKS.get(net.get("name", ""), {}))
  if net.get("name") in ("ddpmpp", "adm", "edm2") and "channel_mult" in net:
    net["channel_mult"] = (1,) * len(net["channel_mult"])


def _shorten_stages(loss: dict[str, Any]) -> None:
  """What grows in the course of a training: the levels of a grid, the stages of ECT."""
  curriculum, pairs = loss.get("curriculum") or {}, loss.get("pairs") or {}
  _at_most(curriculum, total_steps=STEPS)
  if curriculum.get("name") == "doubling":  # two stages
    s0, s1 = curriculum.get("s0", 10), curriculum.get("s1", 1280)
    curriculum["s1"] = min(s1, 2 * s0)
  _at_most(pairs, num_stages=2, steps_per_stage=STEPS // 2)


def _shrink_evaluator(section: dict[str, Any]) -> None:
  _at_most(section, num_samples=NUM_SAMPLES, batch_size=BATCH_SIZE, num_batches=1, num_splits=8)
  _at_most(section, k=NUM_SAMPLES // 4, k_density=NUM_SAMPLES // 4)
  if "kernel" in section.get("scores", ()):  # its subsets are larger than all samples, if unsaid
    section["subset_size"] = min(section.get("subset_size", NUM_SAMPLES), NUM_SAMPLES)


def _at_most(section: dict[str, Any], **limits: int) -> None:
  """Lowers those of the numbers that the section has."""
  section.update({k: min(section[k], limit) for k, limit in limits.items() if section.get(k)})


def _find(spec: str) -> tuple[Path, str]:
  """The file and the variant that a spec names."""
  name, _, variant = spec.partition(":")
  path = paths.local(name, "--config") if name else Path()
  if path.suffix in (".py", ".json") and path.is_file():
    return path, variant
  stem = name.removeprefix("configs/").removesuffix(".py")
  if stem in names():
    return folder() / f"{stem}.py", variant
  if path.is_file():
    raise ValueError(f"{name} is no config: take a page, .py, or a run's config.json.")
  near = difflib.get_close_matches(Path(stem).name, names(), 4)
  known = f"Nearest of cmjax's: {', '.join(near)}" if near else f"cmjax's are in {folder()}"
  raise ValueError(
    f"No config page {name!r}, nor a file. {known}. Name a page of your own by its path: "
    "path/to/page.py."
  )


def _stored(path: Path, variant: str) -> ConfigDict:
  """The config that a run wrote: data, never executed."""
  _check_variant(variant, ())
  try:
    settings = json_files.read(path)
    if not isinstance(settings, dict):
      raise ValueError(f"a config is an object, got {type(settings).__name__}")
    config = ConfigDict(settings)
  except ValueError as error:
    raise ValueError(f"{path} is no config in JSON: {_line(error)}") from error
  return smoke(config) if variant else config


def _config_of(path: Path, variant: str) -> ConfigDict:
  """What get_config of a page returns, in a variant of it."""
  page = _page(path)
  get_config = page["get_config"]
  takes = inspect.signature(get_config).parameters
  takes_variant, counted = bool(takes), {}
  if COUNT in takes and ":" in variant:
    variant, _, count = variant.partition(":")
    counted = {COUNT: _count(count)}
  if "VARIANTS" in page or not takes_variant:
    own = tuple(page.get("VARIANTS", ()))
    _check_variant(variant, own)
  else:
    own = (variant,)  # the page itself knows which it has
  config = _call(path, get_config, *([variant] if variant in own and variant else []), **counted)
  return config if variant in ("", *own) else smoke(config)


def _page(path: Path) -> dict[str, Any]:
  """The names that a page defines."""
  with _explained(path):
    page = runpy.run_path(str(path))
  if not callable(page.get("get_config")):
    raise ValueError(f"{path} has no function get_config(), which returns the config of a page.")
  return page


def _call(path: Path, get_config: Callable[..., Any], *args: str, **kwargs: int) -> ConfigDict:
  with _explained(path):
    config = get_config(*args, **kwargs)
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict: does it end with "
      "`return`?"
    )
  return config


def _count(text: str) -> int:
  """The number of images at the end of a spec."""
  digits = text.replace(",", "").replace("_", "")
  if not digits.isdecimal() or not 0 < int(digits) < 2**31:
    raise ValueError(f"{text!r} is no number of images: own_images_teacher:64:12000 has one.")
  return int(digits)


def _check_variant(variant: str, own: Iterable[str]) -> None:
  choices = dict.fromkeys(("smoke", *own))
  if variant and variant not in choices:
    raise ValueError(f"Unknown variant {variant!r}. Choose from: {', '.join(choices)}.")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """An error inside a page becomes one line: the page, the line in it, what is wrong."""
  try:
    yield
  except Exception as error:
    message, number = _line(error), None
    if isinstance(error, SyntaxError) and error.filename == str(path):
      message, number = error.msg, error.lineno
    for frame in traceback.extract_tb(error.__traceback__):
      number = frame.lineno if frame.filename == str(path) else number
    if type(error) is not ValueError:  # whose message is written for the user
      message = f"{type(error).__name__}: {message}"
    where = f"{path}, line {number}" if number else str(path)
    raise ValueError(f"{where}: {message}") from error


def _line(error: BaseException) -> str:
  """The message of an error in one line."""
  return printable.printable(" ".join(str(error).split()))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{a.b.c: value}; an empty section is a value, and lists are tuples."""
  flat = {}
  for key, value in settings.items():
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = _tuples(value)
  return flat


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _same(a: Any, b: Any) -> bool:
  return a == b and isinstance(a, bool) == isinstance(b, bool)  # 1 is 1.0, and not True
