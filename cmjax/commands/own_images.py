r"""From a folder of pictures to a training: prepares, measures, writes two pages, says what to run.

  cmjax start photos/ --out runs/photos

The pictures may be of any size and of most kinds; subfolders do not count as classes. They are
cropped to squares of 64 pixels (32 where most are smaller), and a tenth is held out. Nothing is
trained yet, and the pictures stay as they are. Stopped while it prepares, the same command goes on.
"""

import argparse
import logging
import shlex
from collections.abc import Sequence
from typing import Any

from cmjax.base.ranges import CountOrNone, Folder
from cmjax.commands import common
from cmjax.data import image_files


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares pictures and writes pages; an error is one message. Returns the exit code."""
  args = _arguments(argv)
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  common.log_ours()
  return common.answered(lambda: _run(args)) or 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.parser_of("start", __doc__, "cmjax start PICTURES --out DIR [options]")
  add = parser.add_argument

  def value(name: str, kind: Any, help: str, **others: Any) -> None:
    add(f"--{name}", type=common.argument(kind, f"--{name}"), help=help, **others)

  add("pictures", help="a folder or .zip of pictures, or an .npz with train_images")
  value("out", Folder, "the folder to make", metavar="DIR", required=True)
  add("--resolution", type=int, choices=(32, 64), help="side of the squares; by default as above")
  add("--channels", type=int, choices=(1, 3), help="1: gray, 3: colours; by default as they are")
  value("max_bad", CountOrNone, "pictures that cannot be read and are left out (2 %% of all)")
  add("--background", default="white", metavar="COLOUR", help="that alpha is laid over (white)")
  value("workers", CountOrNone, "processes; by default one for each core, 0: none beside this")
  add("--no_timing", action="store_true", help="do not time some steps, which takes minutes")
  common.add_always(parser)
  return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
  common.permit(args.allow_parts, args.limits)
  background = image_files.colour(args.background)
  from cmjax.program import own_images  # here, as JAX takes seconds to start

  pictures, out = own_images.check_places(args.pictures, args.out)
  found = own_images.prepare(
    pictures,
    out,
    size=args.resolution,
    channels=args.channels,
    max_bad=args.max_bad,
    background=background,
    num_workers=args.workers,
  )
  for path in own_images.write_pages(found):
    common.say(f"\n--- {path} ---\n{path.read_text(encoding='utf-8')}")
  out = shlex.quote(found.out)
  times = ("", "") if args.no_timing else own_images.spoken_hours(found)
  common.say(_what_to_run(out, *times))
  return 0


def _what_to_run(out: str, teacher: str, student: str) -> str:
  """The next commands."""
  train = "cmjax train --config={0}/{1}.py --workdir={0}/{1}"
  lines = ["Run these, one after the other. If one is stopped, the same command goes on.", ""]
  for name, time in (("teacher", teacher), ("student", student)):
    lines.append(f"  {train.format(out, name)}{f'    # {time} here' * bool(time)}")
  lines += [f"  cmjax sample --workdir={out}/student", ""]
  lines.append(f"While they run, {out}/teacher/report.html shows samples and scores.")
  if "day" in teacher + student:
    lines.append("That is long. On a GPU it is hours; --resolution=32 takes about a quarter.")
  return "\n".join(lines)
