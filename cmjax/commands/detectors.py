r"""The weights of a detector, from the file that its authors publish to the one that cmjax reads.

  cmjax detectors pt_inception-2015-12-05-6726825d.pth --to inception.npz

Nothing in the file is executed, and nothing is downloaded: docs/detectors.md has the addresses.
"""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Converts one file; errors that are the user's to mend are one message. Returns the exit code.

  Flags by argparse, as those of `cmjax convert`.
  """
  parser = argparse.ArgumentParser(
    prog="cmjax detectors",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("file", help="a .pth of PyTorch's or a .safetensors")
  parser.add_argument("--to", required=True, help="the .npz to write")
  args = parser.parse_args(argv)
  from cmjax.metrics.detectors import published_weights  # here, so that --help need not wait

  try:
    print(published_weights.convert(args.file, args.to))  # noqa: T201 (the answer)
  except (ValueError, OSError) as error:
    print(f"cmjax: {error}", file=sys.stderr)  # noqa: T201
    return 1
  return 0
