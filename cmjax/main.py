r"""The program: trains, samples, evaluates, or measures a data set.

  python -m cmjax.main --config=configs/digits_sct.py --workdir=runs/digits_sct

Every value of the config can be set: --config.optim.lr=3e-4. The same command goes on with a run
that was interrupted. Exit codes: 0 done; 75 interrupted by SIGTERM or SIGINT, state saved, start
the same command again; 1 an error, 2 a wrong flag.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "sample", "evaluate", "measure")

_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many samples (mode sample).")
_SAMPLER = flags.DEFINE_string("sampler", None, "Of config.samplers; default: all (mode sample).")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples' noise (mode sample).")
_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file in configs/.")


def main(argv: list[str]) -> None:
  """Runs one mode; errors that are the user's to mend are one message, not a stack trace."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments {argv[1:]}: options begin with --.")
  # Ours only: the libraries underneath write dozens of lines for each checkpoint.
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("absl").setLevel(logging.WARNING)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  # Imported here, so that --help and a misspelt flag need not wait for jax.
  from cmjax import sample, train

  config, workdir = _CONFIG.value, _WORKDIR.value
  try:
    if _MODE.value == "measure":
      print(sample.measure(config))  # noqa: T201 (the answer)
      return
    if workdir is None:
      raise ValueError(f"--mode={_MODE.value} needs --workdir, the folder of the run.")
    if _MODE.value == "train":
      train.train(config, workdir)
    elif _MODE.value == "evaluate":
      print(sample.evaluate(config, workdir))  # noqa: T201
    else:
      for path in sample.sample(
        config, workdir, num_samples=_NUM_SAMPLES.value, name=_SAMPLER.value, seed=_SEED.value
      ):
        print(path)  # noqa: T201
  except (ValueError, OSError, FloatingPointError) as error:
    logging.getLogger("cmjax").debug("Where it came from:", exc_info=True)
    print(f"cmjax: {error}", file=sys.stderr)  # noqa: T201
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
