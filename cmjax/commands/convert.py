r"""Foreign checkpoints in, weights out.

  cmjax convert edm-cifar10-32x32-uncond-vp.pkl --to runs/cifar10_edm
  cmjax convert --export runs/cifar10_scd --to scd.safetensors --ema main

The first writes a run: sample from it with `cmjax sample`, or name it as
teacher.workdir or init_from.workdir. Nothing in the file is executed.
"""

import argparse
from collections.abc import Sequence

from cmjax.commands import common

USAGE = """cmjax convert FILE --to DIR [--ema NAME]
       cmjax convert --export RUN_DIR --to FILE.safetensors [--ema NAME]"""


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one file; errors that are the user's to mend are one message. Returns the exit code.

  Flags by argparse: there is no config whose values they set, and absl has no positions.
  """
  parser = argparse.ArgumentParser(
    prog="cmjax convert",
    usage=USAGE,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("file", nargs="?", help="a .pkl, .pt, .safetensors or msgpack of weights")
  parser.add_argument("--export", metavar="RUN_DIR", help="a run, to write out as safetensors")
  parser.add_argument("--to", required=True, help="folder of the new run, or the file to write")
  parser.add_argument("--ema", metavar="NAME", help="which of several networks or averages")
  common.add_always(parser)
  args = parser.parse_args(argv)
  if (args.file is None) == (args.export is None):
    parser.error("give a FILE to convert, or a run to --export: one of the two")
  common.log_ours()
  from cmjax.program import convert  # here, so that --help need not wait for jax

  try:
    common.permit(args.allow_parts, args.limits)
    if args.export is None:
      common.say(convert.convert(args.file, args.to, ema=args.ema))
    else:
      common.say(convert.export(args.export, args.to, ema=args.ema))
  except (ValueError, OSError) as error:
    common.complain(error)
    return 1
  return 0
