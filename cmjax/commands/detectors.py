r"""The weights of a detector, from the file that its authors publish to the one that cmjax reads.

  cmjax detectors pt_inception-2015-12-05-6726825d.pth --to inception.npz

Nothing in the file is executed, and nothing is downloaded. The addresses are
in docs/guides/detectors.md.
"""

import functools
from collections.abc import Sequence

from cmjax.base.ranges import Folder
from cmjax.commands import common


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one file; an error is one message. Returns the exit code."""
  return common.answered(lambda: _convert(argv)) or 0


def _convert(argv: Sequence[str] | None) -> int:
  """Converts one file.

  Flags by argparse, as those of `cmjax convert`.
  """
  path = functools.partial(common.argument, Folder)
  parser = common.parser_of("detectors", __doc__)
  parser.add_argument("file", type=path("FILE"), help="a .pth of PyTorch's or a .safetensors")
  parser.add_argument("--to", required=True, type=path("--to"), help="the .npz to write")
  common.add_always(parser)
  args = parser.parse_args(argv)
  from cmjax.metrics.detectors import published_weights  # here, so that --help need not wait

  common.permit(args.allow_parts, args.limits)
  common.say(published_weights.convert(args.file, args.to))
  return 0
