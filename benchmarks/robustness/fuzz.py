r"""What do the readers of foreign files make of files that nobody would write? Found by coverage.

  pip install -e '.[test,fuzz]'
  python benchmarks/robustness/fuzz.py --reader=npz                # ten minutes on one core
  python benchmarks/robustness/fuzz.py --reader=parquet --minutes=1
  python benchmarks/robustness/fuzz.py --reader=zip crash-1234     # that file alone

libFuzzer (by atheris) changes the seeds of tests/corpus and keeps what reaches new code. A reader
must answer each file within ten seconds and one GB, with what it holds or with one printable line;
it must start no program, open no connection, and write nothing beside the file. Anything else ends
the run, and the file that did it is kept: `crash-...`, `timeout-...` or `oom-...` in --found. What
was mended stays in tests/corpus, whose files tests/benchmarks/corpus_test.py reads in every run.
"""

import argparse
import contextlib
import functools
import inspect
import io
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cmjax import experiment, pages
from cmjax.base import npz, tar_files
from cmjax.convert import detect, files
from cmjax.data import idx_files, image_files, image_sets, manifest, sources
from cmjax.data.prepare import originals
from cmjax.metrics import cards, compare, references
from cmjax.program import searched_times

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
SECONDS, MEGABYTES = 10, 1_000
# Events of Python's audit: no reader has a reason for them.
NEVER = ("os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "subprocess.Popen")
NEVER += ("socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open", "pty.spawn")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Broken(Exception):
  """A reader did what none may do."""


def _all_elements(data: Any) -> None:
  for i in range(min(len(data), 8)):
    data[i]


def _pictures(path: Path) -> None:
  found = originals.find(path)
  for i in range(min(len(found), 8)):
    found.picture(i, tuple(image_files.CONVERSIONS))


def _foreign(path: Path) -> None:
  for weights in files.read(path).networks.values():
    detect.detect(weights)


def _arrays(path: Path) -> None:
  with npz.opened(path) as arrays:
    for name in arrays:
      arrays[name]


def _card(path: Path) -> None:
  card = cards.read(path)
  cards.lines(card)
  compare.table(card, card)


def _config(path: Path) -> None:
  experiment.parse(pages.load(path))


def _times(path: Path) -> None:
  searched_times.use(_trained(), path.parent, None)


@functools.cache
def _trained() -> Any:
  """An experiment that has the samplers of the seeds."""
  return experiment.parse(pages.smoke(pages.load("toy2d_sct")))


# reader -> (the file's path in its folder, what reads it).
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
  "manifest": ("train/manifest.json", lambda path: manifest.read(path.parents[1], "train")),
  "dataset_json": ("dataset.json", lambda path: _all_elements(sources.folder(path.parent))),
  "npz": ("set.npz", lambda path: _all_elements(image_sets.read(path))),
  "arrays": ("any.npz", _arrays),
  "reference": ("reference.npz", lambda path: references.read(path, "pixels")),
  "zip": ("set.zip", _pictures),
  "parquet": ("set.parquet", lambda path: _pictures(path.parent)),
  "safetensors": ("weights.safetensors", _foreign),
  "pickle": ("weights.pkl", _foreign),
  "torch": ("weights.pt", _foreign),
  "card": ("card.json", _card),
  "sampler_times": ("sampler_times.json", _times),
  "config": ("config.json", _config),
  "tar_gz": ("set.tar.gz", lambda path: tar_files.read(path, ["a/data.bin"])),
  "idx": ("images.idx.gz", idx_files.read),
  "picture": ("a.png", lambda path: _all_elements(sources.folder(path.parent))),
}


def read(reader: str, data: bytes, folder: Path) -> str:
  """What a reader says of a file: "" where it takes it, else its one line.

  Args:
    reader: a key of `READERS`.
    data: of the file.
    folder: for it; what the reader's file needs beside it is in it, as in tests/corpus.

  Raises:
    Broken: it says more than a line, or what a terminal would obey.
    Exception: it let through what no user should see.
  """
  name, call = READERS[reader]
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  try:
    with contextlib.redirect_stderr(io.StringIO()):
      call(path)
  except (ValueError, OSError) as error:
    if not str(error).isprintable():
      raise Broken(f"not one printable line: {str(error)!r}") from error
    return str(error)
  return ""


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
  """Raises where a program is started, or something is written outside a folder."""
  inside, active = os.path.join(os.path.realpath(folder), ""), True

  def hook(event: str, args: tuple[Any, ...]) -> None:
    if not active:
      return
    if event.startswith(NEVER):
      raise Broken(f"{event} {args!r}")
    if event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
      outside = not os.path.realpath(args[0]).startswith((inside, "/dev/null"))
      if args[2] & WRITES and outside:
        raise Broken(f"written: {args[0]}")

  sys.addaudithook(hook)  # which cannot be taken away again
  try:
    yield
  finally:
    active = False


def seeds(reader: str) -> list[Path]:
  """The files of a reader in tests/corpus."""
  return sorted(path for path in (CORPUS / reader).iterdir() if path.is_file())


def beside(reader: str, folder: Path) -> None:
  """Puts what the reader's file needs beside it into a folder."""
  if (CORPUS / reader / "beside").is_dir():
    shutil.copytree(CORPUS / reader / "beside", folder, dirs_exist_ok=True)


def _functions() -> Iterator[types.FunctionType]:
  """Of cmjax and of the readers that it stands on: their branches are what is looked for."""
  names = ("cmjax", "zipfile", "tarfile", "gzip", "json", "numpy.lib", "PIL")
  modules = [m for name, m in sys.modules.items() if name.split(".")[0] in names or name in names]
  seen = set()
  for holder in [*modules, *(v for m in modules for v in vars(m).values() if inspect.isclass(v))]:
    for value in list(vars(holder).values()):
      own = isinstance(value, types.FunctionType) and value.__module__.startswith(names)
      if own and id(value) not in seen:
        seen.add(id(value))
        yield value


def main() -> None:
  """Fuzzes one reader, until the time is over or something is found."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--reader", required=True, choices=READERS)
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--found", type=Path, default=Path("runs/fuzz"))
  parser.add_argument("files", nargs="*", type=Path, help="read these alone")
  args = parser.parse_args()
  import atheris  # here, so that the tests need not have it

  for function in _functions():
    atheris.instrument_func(function)
  kept, found = args.found / args.reader / "corpus", args.found / args.reader
  kept.mkdir(parents=True, exist_ok=True)
  # libFuzzer ends the process: whatever system has temporary folders clears this one away.
  folder = Path(tempfile.mkdtemp())
  beside(args.reader, folder)
  _trained()
  options = [
    f"-max_total_time={round(60 * args.minutes)}", f"-timeout={SECONDS}", "-print_final_stats=1",
    f"-rss_limit_mb={MEGABYTES + 1_000}", f"-malloc_limit_mb={MEGABYTES}", "-max_len=65536",
    f"-artifact_prefix={found}/",
  ]  # fmt: skip
  places = [*map(str, args.files)] or [str(kept), str(CORPUS / args.reader)]
  with watched(folder):
    atheris.Setup([sys.argv[0], *options, *places], lambda data: read(args.reader, data, folder))
    atheris.Fuzz()


if __name__ == "__main__":
  main()
