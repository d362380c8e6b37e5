"""Names and texts of others on their way to the terminal, through the commands; and --limits."""

import json

import pytest
from absl import flags

from cmjax import pages
from cmjax.base import limits, parts
from cmjax.commands import convert, detectors, ema, prepare, runs, start
from cmjax.metrics import compare

ESCAPE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"


@pytest.fixture(autouse=True)
def _own_permissions(monkeypatch):
  monkeypatch.setattr(limits, "_raised", {})
  monkeypatch.setattr(parts, "_allowed", set())


def run(verb, *arguments):
  """A verb with a config, in this process."""
  return start.run(start.parse([f"cmjax {verb}", *arguments], verb, flags.FlagValues()))


def folder_of_names(root):
  """A folder of pictures with such a class, and a damaged picture of such a name."""
  (root / f"class{ESCAPE}").mkdir(parents=True)
  (root / f"class{ESCAPE}" / f"x{ESCAPE}.png").write_bytes(b"\x89PNG")
  return str(root)


def card(root, text):
  """A card with this text wherever a text may be."""
  content = {"format": 1, "values": {text: 1.0}, "score": text, "detector": {"name": text},
             "reference": {text: text}, "images": {"kind": text, "num": 2}, "rounding": text,
             "options": {text: [text]}}  # fmt: skip
  root.write_text(json.dumps(content))
  return str(root)


def config(root):
  values = pages.load("toy2d_sct").to_dict()
  values["data"]["name"] = f"toy{ESCAPE}"
  (root / "config.json").write_text(json.dumps(values))
  return str(root / "config.json")


def labels(root):
  (root / "a").mkdir()
  (root / "a" / f"x{ESCAPE}.png").write_bytes(b"")
  (root / "a" / "dataset.json").write_text(json.dumps({ESCAPE: 0, "y": ESCAPE}))
  return str(root / "a")


def folder_of_runs(root):
  """A run whose config has such texts, and one of such a name."""
  for name in ("plain", f"run{ESCAPE}"):
    (root / name).mkdir(parents=True)
    config(root / name)
  return str(root)


def weights(root):
  path = root / f"w{ESCAPE}.pkl"
  path.write_bytes(b"\x80\x04c" + f"a{ESCAPE[:4]}\nb{ESCAPE[:4]}\n.".encode())
  return str(path)


def card_of_two(root):
  text = json.dumps(ESCAPE)
  (root / "x.json").write_text(f"{{{text}: 1, {text}: 2}}")
  return str(root / "x.json")


COMMANDS = {
  "a damaged picture": lambda p: prepare.main([folder_of_names(p / "a"), "--out", str(p / "o")]),
  "labels without pictures": lambda p: prepare.main([labels(p), "--out", str(p / "o")]),
  "a source of that name": lambda p: prepare.main([f"{p}/{ESCAPE}.zip", "--out", str(p / "o")]),
  "two cards": lambda p: compare.main([card(p / "a", ESCAPE), card(p / "b", f"y{ESCAPE}")]),
  "a card with a key twice": lambda p: compare.main([card_of_two(p), card(p / "b", "y")]),
  "weights": lambda p: convert.main([weights(p), "--to", str(p / "run")]),
  "weights of a detector": lambda p: detectors.main([weights(p), "--to", str(p / "x.npz")]),
  "a run of that name": lambda p: ema.main(["--workdir", f"{p}/{ESCAPE}", "--sigma_rel=0.1"]),
  "runs of such names": lambda p: runs.main([folder_of_runs(p / "a")]),
  "a stored config, shown": lambda p: run("show", f"--config={config(p)}"),
  "a stored config, used": lambda p: run("measure", f"--config={config(p)}", "--compile_cache="),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_a_terminal_obeys_reaches_it(name, tmp_path, capsys):
  try:
    code = COMMANDS[name](tmp_path)
  except SystemExit as stop:
    code = stop.code
  out, err = capsys.readouterr()
  assert (out or err) and r"\x1b" in out + err
  assert all(c.isprintable() or c in "\n\t" for c in out + err), ascii(out + err)
  assert code in (0, 1, 2, None) and "Traceback" not in err


def test_limits_are_raised_by_a_flag_of_every_command(tmp_path, capsys):
  source = folder_of_names(tmp_path / "a")
  for main, arguments in (
    (prepare.main, [source, "--out", str(tmp_path / "o")]),
    (convert.main, [source, "--to", str(tmp_path / "r")]),
    (detectors.main, [source, "--to", str(tmp_path / "x")]),
    (ema.main, ["--workdir", source, "--sigma_rel=0.1"]),
  ):
    assert main([*arguments, "--limits=json_bytes=1e9, classes=7"]) == 1
    assert (limits.get("json_bytes"), limits.get("classes")) == (10**9, 7)
    capsys.readouterr()
    assert main([*arguments, "--limits=jason_bytes=1e9"]) == 1
    assert "Unknown limit 'jason_bytes'. Choose from: classes" in capsys.readouterr().err
    limits.allow({"classes": 8})
  run("show", "--config=toy2d_sct", "--limits=classes=9", "--allow_parts=x.y,z")
  assert limits.get("classes") == 9 and parts._allowed == {"x.y", "z"}
