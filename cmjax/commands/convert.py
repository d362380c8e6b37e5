r"""Foreign checkpoints in, weights out.

  cmjax convert edm-cifar10-32x32-uncond-vp.pkl --to runs/cifar10_edm
  cmjax convert --export runs/cifar10_scd --to scd.safetensors --ema main
  cmjax sample scd.safetensors

The first writes a run: sample from it with `cmjax sample`, or name it as
teacher.workdir or init_from.workdir. Nothing in the file is executed.
"""

import functools
from collections.abc import Sequence

from cmjax.base.ranges import Folder, Workdir
from cmjax.commands import common

USAGE = """cmjax convert FILE --to DIR [--ema NAME]
       cmjax convert --export RUN_DIR --to FILE.safetensors [--ema NAME] [--dtype float16]"""

DTYPES = ("float32", "float16")


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one file; an error is one message. Returns the exit code."""
  return common.answered(lambda: _convert(argv)) or 0


def _convert(argv: Sequence[str] | None) -> int:
  """Converts one file.

  Flags by argparse: there is no config whose values they set, and absl has no positions.
  """
  path = functools.partial(common.argument, Folder)
  run = functools.partial(common.argument, Workdir)
  parser = common.parser_of("convert", __doc__, USAGE)
  parser.add_argument(
    "file", nargs="?", type=path("FILE"), help="a .pkl, .pt, .safetensors or msgpack of weights"
  )
  parser.add_argument(
    "--export", metavar="RUN_DIR", type=run("--export"), help="a run, to write out as safetensors"
  )
  parser.add_argument(
    "--to", required=True, type=run("--to"), help="folder of the new run, or the file to write"
  )
  parser.add_argument("--ema", metavar="NAME", help="which of several networks or averages")
  parser.add_argument(
    "--dtype", choices=DTYPES, help="of the numbers in an exported file; float32 by default"
  )
  common.add_always(parser)
  args = parser.parse_args(argv)
  if (args.file is None) == (args.export is None):
    parser.error("give a FILE to convert, or a run to --export: one of the two")
  if args.dtype and args.export is None:
    parser.error("--dtype is for --export")
  common.log_ours()
  from cmjax.program import convert  # here, so that --help need not wait for jax

  common.permit(args.allow_parts, args.limits)
  if args.export is None:
    common.say(convert.convert(args.file, args.to, ema=args.ema))
  else:
    dtype = args.dtype or DTYPES[0]
    common.say(convert.export(args.export, args.to, ema=args.ema, dtype=dtype))
  return 0
