r"""Any collection of images to a set that trains: shards, with a manifest of how they were made.

  cmjax prepare ILSVRC/train --out data/imagenet64 \
      --transform=center-crop-dhariwal --resolution=64
  cmjax prepare ILSVRC/train --out data/imagenet512 \
      --transform=center-crop-dhariwal --resolution=512 --latents=vae.safetensors
  cmjax prepare --validate data/imagenet64

SOURCE is a folder or .zip of images (classes are subfolders, or dataset.json says them, as in
EDM's zips), a folder of Hugging Face's .parquet files, an .npz ({split}_images, {split}_labels) or
a tfds name. Train with --config.data.name=records --config.data.records.path=DIR. Killed at any
moment, the same command goes on, to the same bytes. Nothing is repaired in silence: pictures that
are not 8 bits of gray or RGB, or cannot be read, are errors until --convert or --max_bad says
otherwise, and the manifest counts them.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmjax.base import lock
from cmjax.base.ranges import Count, CountOrNone, Folder, Share, Size, SizeOrNone
from cmjax.commands import common
from cmjax.data import image_files
from cmjax.data.prepare import crops

USAGE = """cmjax prepare SOURCE --out DIR [options]
       cmjax prepare --validate DIR"""


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares or validates; errors that are the user's to mend are one message. The exit code."""
  args = _arguments(argv)
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  common.log_ours()
  return common.answered(lambda: _run(args)) or 0


def _run(args: argparse.Namespace) -> int:
  common.permit(args.allow_parts, args.limits)
  return _validate(args.validate) if args.validate else _prepare(args)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = common.parser_of("prepare", __doc__, USAGE)
  add = parser.add_argument

  def value(name: str, kind: Any, help: str, **others: Any) -> None:
    """Of a kind that is read as a config's values are."""
    add(f"--{name}", type=common.argument(kind, f"--{name}"), help=help, **others)

  def number(name: str, default: int, help: str) -> None:
    value(name, Count, f"{help} ({default:,})", default=default)

  add("source", nargs="?", help="a folder, .zip, .npz or tfds name")
  value("out", Folder, "of the set; a split is a folder in it", metavar="DIR")
  value("validate", Folder, "read a set back and say what is wrong with it", metavar="DIR")
  add("--split", default="train", help="its name here, and in an .npz, tfds or parquet (train)")
  held_out = "two splits, train and test: this part, evenly over the source, is the test"
  value("held_out", Share, held_out, metavar="FRACTION")
  add("--transform", default="none", choices=crops.TRANSFORMS)
  value("resolution", Size, "side of the square")
  add("--filter", choices=sorted(crops.FILTERS), help="of center-crop (lanczos, as in EDM)")
  add("--channels", type=int, choices=(1, 3), help="1 or 3; by default as the first image")
  add("--labels", help="none, a JSON file {name: class} or EDM's, or a column of parquet files")
  value("num_classes", SizeOrNone, "where it is more than the labels show")
  add("--image_column", default="image", help="of parquet files (image)")
  kinds = ",".join(image_files.CONVERSIONS)
  add("--convert", default="", metavar="KINDS", help=f"what may be made 8 bits of RGB: {kinds}")
  background = "a colour that alpha is laid over, which allows alpha: white, black, #rrggbb"
  add("--background", metavar="COLOUR", help=background)
  value("max_bad", CountOrNone, "images that cannot be read and are left out (0)", default=0)
  number("max_pixels", image_files.DEFAULT.max_pixels, "of one")
  number("max_bytes", image_files.DEFAULT.max_bytes, "of a file")
  add("--latents", metavar="VAE.safetensors", help="keep mean and std of the SD-VAE's latents")
  add("--convention", help="of latents: scm or edm2 (scm)")
  moments = "the source is .npy files of EDM2's dataset tool: mean and std of latents"
  add("--moments", action="store_true", help=moments)
  number("batch_size", 8, "of the autoencoder")
  add("--licence", default="", help="a note on the images, for the manifest")
  value("workers", CountOrNone, "processes; by default one for each core, 0: none beside this")
  common.add_always(parser)
  args = parser.parse_args(argv)
  if args.validate is None and (args.source is None or args.out is None):
    parser.error("give a SOURCE and --out DIR, or --validate DIR")
  if args.validate is not None and (args.source or args.out):
    parser.error("--validate DIR stands alone")
  others = ("latents", "resolution", "filter", "channels", "convert", "background")
  given = [f"--{name}" for name in others if getattr(args, name)]
  given += ["--transform"] * (args.transform != "none")
  given += ["--convention"] * (args.convention not in (None, "edm2"))
  if args.moments and given:
    parser.error(f"--moments are latents of the convention edm2 already: leave out {given[0]}")
  return args


def _prepare(args: argparse.Namespace) -> int:
  from cmjax.data.prepare import originals, validation, writing  # here, so that --help is quick

  convert = tuple(kind for kind in args.convert.split(",") if kind)
  background = image_files.WHITE
  if args.background:
    convert, background = (*convert, "alpha"), image_files.colour(args.background)
  recipe = writing.Recipe(
    args.transform, args.resolution, args.filter, args.channels, convert, background
  )
  pictures = originals.find(
    args.source,
    split=args.split,
    labels=args.labels,
    num_classes=args.num_classes,
    image_column=args.image_column,
    moments=args.moments,
  )
  rules = image_files.Rules(max_pixels=args.max_pixels, max_bytes=args.max_bytes)
  pictures.rules = rules.checked()
  logging.getLogger("cmjax").info("%s", pictures.line(args.source))
  encoder = None
  if args.latents or args.moments:
    from cmjax.data.prepare import encoding  # here, as JAX takes seconds to start

    if args.moments:
      encoder = encoding.of_moments()
    else:
      convention = args.convention or "scm"
      encoder = encoding.encoder(args.latents, convention, batch_size=args.batch_size)
  out = Path(args.out)
  with lock.hold(out, "prepare"):
    for split, chosen in writing.splits(len(pictures), args.held_out, args.split):
      made = writing.prepare(
        pictures,
        out,
        split,
        recipe,
        chosen=chosen,
        encoder=encoder,
        max_bad=args.max_bad,
        licence=args.licence,
        num_workers=args.workers,
      )
      common.say(validation.summary(out / split, made))
  return 0


def _validate(path: str) -> int:
  from cmjax.data.prepare import validation

  report = validation.validate(path)
  for line in (*report.notes, *report.problems):
    common.say(line)
  number = len(report.problems)
  common.say(f"{number} problem{'s' * (number != 1)}." if number else "It is sound.")
  return 1 if number else 0
