r"""The program: trains, samples, scores, makes references, searches, measures, verifies, plans.

  python -m cmjax.main --config=configs/digits_sct.py --workdir=runs/digits_sct

Every value of the config can be set: --config.optim.lr=3e-4. The same command goes on with a run
that was interrupted. Exit codes: 0 done; 75 interrupted by SIGTERM or SIGINT, state saved, start
the same command again; 1 an error.
"""

import ast
import logging
import re
import sys
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags


class _AnyValue(flags.ArgumentParser):
  """A Python literal, or else a string."""

  def parse(self, argument: Any) -> Any:
    try:
      return ast.literal_eval(argument)
    except (ValueError, SyntaxError):
      return argument


# Without it a value that is None in the config (clip_norm, a switched-off part) could not be set.
config_flags.register_flag_parser_for_type(type(None), _AnyValue())

MODES = ("train", "sample", "evaluate", "reference", "search", "measure", "verify", "plan")

_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many (modes sample, search).")
_SAMPLER = flags.DEFINE_string(
  "sampler", None, "Of config.samplers; default: all (modes sample, search)."
)
_EMA = flags.DEFINE_string("ema", None, "Average; default: the run's first (mode sample).")
_IMAGES = flags.DEFINE_string(
  "images", None, "A folder or .npz of images, instead of a checkpoint (mode evaluate)."
)
_TO = flags.DEFINE_string("to", None, "File of statistics to write: .npz or .pkl (mode reference).")
_TOPOLOGY = flags.DEFINE_string(
  "topology", "local", "Chips: local, TPUs as v5p:4x4x4, GPUs as h100:8 (mode plan)."
)
_NUM_PROBES = flags.DEFINE_integer("num_probes", 12, "Per intermediate time (mode search).")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples' noise (modes sample, search).")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_boolean(
  "allow_config_change", False, "Go on although the config is not the checkpoint's (mode train)."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, where no cluster tells it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's, from 0, with --coordinator.")
_COMPILE_CACHE = flags.DEFINE_string(
  "compile_cache",
  "~/.cache/cmjax/xla",
  "Folder of programs, compiled for the next start; empty: none.",
)
_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file in configs/.")


def main(argv: list[str]) -> None:
  """Runs one mode; errors that are the user's to mend are one message, not a stack trace."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments {argv[1:]}: options begin with --.")
  # Ours only: the libraries underneath write dozens of lines for each checkpoint.
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  # Imported here, so that --help and a misspelt flag need not wait for jax.
  from cmjax import verify
  from cmjax.program import sample, train

  config, workdir = _CONFIG.value, _WORKDIR.value
  try:
    if _MODE.value == "measure":
      print(sample.measure(config))  # noqa: T201 (the answer)
      return
    if _MODE.value == "verify":
      table, passed = verify.verify(config, workdir)
      print(table)  # noqa: T201
      sys.exit(0 if passed else 1)
    if _MODE.value == "plan":
      from cmjax.program import plan

      report = plan.plan(config, _TOPOLOGY.value)
      print(plan.table(report))  # noqa: T201
      if workdir is not None:
        print(plan.write(report, workdir))  # noqa: T201
      return
    if _MODE.value == "reference":
      if _TO.value is None:
        raise ValueError("--mode=reference needs --to, the file to write: statistics.npz.")
      print(sample.make_reference(config, _TO.value))  # noqa: T201
      return
    if workdir is None:
      raise ValueError(f"--mode={_MODE.value} needs --workdir, the folder of the run.")
    if _MODE.value == "train":
      train.train(config, workdir, allow_config_change=_ALLOW_CONFIG_CHANGE.value)
    elif _MODE.value == "evaluate" and _IMAGES.value is not None:
      print(sample.evaluate_images(config, workdir, _IMAGES.value))  # noqa: T201
    elif _MODE.value == "evaluate":
      print(sample.evaluate(config, workdir))  # noqa: T201
    elif _MODE.value == "search":
      found = sample.search_times(
        config,
        workdir,
        name=_SAMPLER.value,
        num_samples=_NUM_SAMPLES.value,
        num_probes=_NUM_PROBES.value,
        seed=_SEED.value,
      )
      print(found)  # noqa: T201
    else:
      for path in sample.sample(
        config,
        workdir,
        num_samples=_NUM_SAMPLES.value,
        name=_SAMPLER.value,
        seed=_SEED.value,
        ema=_EMA.value,
      ):
        print(path)  # noqa: T201
  except (ValueError, OSError, FloatingPointError) as error:
    logging.getLogger("cmjax").debug("Where it came from:", exc_info=True)
    _exit(error)


def join_and_run(argv: list[str]) -> None:
  """`main`, after this process has joined the others of its run: once, before any use of JAX."""
  from cmjax.base import sharding

  # A program for chips that are not there cannot be read back, and plan says how long it compiles.
  if _COMPILE_CACHE.value and _MODE.value != "plan":
    sharding.keep_compiled(_COMPILE_CACHE.value)
  if _MODE.value in ("train", "sample", "evaluate", "reference"):
    try:
      sharding.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except (ValueError, RuntimeError) as error:
      _exit(error)
  main(argv)


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, but for errors in the config: those are one message, and exit code 1."""
  try:
    return app.parse_flags_with_usage(argv)
  except OSError as error:  # of ml_collections: no such config
    _exit(error)
  except (AttributeError, KeyError):
    if wrong := _wrong_key(argv):
      _exit(wrong)
    raise  # the config file itself is at fault


def _wrong_key(argv: list[str]) -> str | None:
  """What is wrong with the first --config.key that the config does not have."""
  override = re.compile(r"--?(?:no)?config\.([^=]+)")
  plain = [arg for arg in argv if not override.match(arg)]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=plain)
  values(plain, known_only=True)
  for path in (match[1] for match in map(override.match, argv) if match):
    section, above = holder.value, []
    for key in path.split("."):
      if not hasattr(section, "keys"):
        return f"--config.{path}: config.{'.'.join(above)} is a value, it has no keys."
      if key not in section:
        where = ".".join(["config", *above])
        return f"--config.{path}: {where} has no {key!r}. It has: {', '.join(sorted(section))}."
      section, above = section[key], [*above, key]
  return None


def _exit(message: object) -> NoReturn:
  print(f"cmjax: {message}", file=sys.stderr)  # noqa: T201
  sys.exit(1)


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["config", "mode"],
    lambda values: values["config"] is not None or values["mode"] == "verify",
    "Flag --config must have a value other than None (but in mode verify).",
  )
  app.run(join_and_run, flags_parser=parse_flags)
