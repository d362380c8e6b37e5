"""Files are written in one way: whole or not at all, by `base.atomic_files`."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
# What is written otherwise, and why that is well.
OTHERWISE = {
  "cmjax/base/atomic_files.py: open xb",  # the one way
  "cmjax/base/atomic_files.py: open a",  # config_changes.jsonl, a line
  "cmjax/data/downloads.py: open ab",  # what came of a download: it goes on, and is renamed last
  "cmjax/base/place.py: open ab",  # what a place can do is tried in a folder that is removed
  "cmjax/base/place.py: open a",
  "cmjax/base/place.py: write_bytes",
  "cmjax/base/place.py: open xb",  # a lease, of which another writer must not be overwritten
  "cmjax/base/lock.py: open a+",  # whoever holds it is the only one to write
  "cmjax/run/history.py: open a",  # metrics.jsonl, by lines; a half-written last one is left out
  "cmjax/run/stacks.py: open ab",  # what a handler in C writes to: it cannot rename
}
STREAMS = ("file", "stream")  # the names of open files, to which numpy may write
BY_NAME = ("write_text", "write_bytes", "touch")
TO_ITS_FIRST = ("save", "savez", "savez_compressed", "savetxt", "to_file", "tofile")


def writes(source):
  """How a module writes files, but for those that it was given open."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    function, arguments = node.func, node.args
    is_method = isinstance(function, ast.Attribute)
    name = function.attr if is_method else getattr(function, "id", "")
    if name == "open":
      place = 0 if is_method else 1
      mode = arguments[place] if len(arguments) > place else ast.Constant("r")
      mode = next((k.value for k in node.keywords if k.arg == "mode"), mode)
      if isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wxa"):
        yield f"open {mode.value}"
    elif is_method and name in BY_NAME:
      yield name
    elif is_method and getattr(function.value, "id", "") == "np" and name in TO_ITS_FIRST:
      if not (arguments and getattr(arguments[0], "id", "") in STREAMS):
        yield f"np.{name}"
    elif is_method and name == "save_file" and ast.unparse(arguments[1]) != "file.name":
      yield name


def test_every_file_of_the_library_is_written_in_one_way():
  found = {
    f"{path.relative_to(ROOT)}: {how}"
    for path in sorted((ROOT / "cmjax").rglob("*.py"))
    for how in writes(path.read_text())
  }
  assert found == OTHERWISE


def test_other_ways_are_seen():
  for source, how in (
    ("path.write_text(x)", "write_text"),
    ("(a / b).write_bytes(x)", "write_bytes"),
    ("np.savez(path, a=a)", "np.savez"),
    ("np.save(folder / name, a)", "np.save"),
    ("open(path, 'w')", "open w"),
    ("open(path, mode='xb')", "open xb"),
    ("path.open('wb')", "open wb"),
    ("safetensors.numpy.save_file(a, target)", "save_file"),
  ):
    assert list(writes(source)) == [how]
  for source in ("np.savez(file, a=a)", "open(path)", "path.open('rb')", "write_text(path, x)"):
    assert not list(writes(source))
