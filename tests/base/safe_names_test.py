"""Names of files in manifests and archives: what leaves the folder, or is no file, is refused."""

import pytest

from cmjax.base import safe_names

REFUSED = {
  "/etc/passwd": "begins at the root",
  "//server/share/x": "begins at the root",
  "../x": "leaves its folder",
  "a/../../x": "leaves its folder",
  "a/..": "leaves its folder",
  "..": "leaves its folder",
  "..\\x": "backslash",
  "a\\b": "backslash",
  "\\\\server\\x": "backslash",
  "C:/x": "drive letter",
  "c:x": "drive letter",
  "a/D:/x": "drive letter",
  "nul": "device",
  "a/CON.png": "device",
  "Aux/1.png": "device",
  "com1.tar.gz": "device",
  "lpt9": "device",
  "a\0.png": "control characters",
  "a\nb": "control characters",
  "\x1b]0;title\x07.png": "control characters",
  "a\x7f": "control characters",
  "a\x9b2J": "control characters",
  "gnp\u202e.exe": "order of letters",
  "\u2066x": "order of letters",
  "a\ud800": "no text",
  "": "names no file",
  ".": "names no file",
  "./": "names no file",
  "x" * 256: "at most 255 bytes a part",
  "é" * 128: "at most 255 bytes a part",
  "a/" * 3000 + "b": "4096",
}


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:30])
def test_a_name_that_leaves_its_folder_or_is_no_file_is_refused(name):
  with pytest.raises(ValueError, match=REFUSED[name]) as stop:
    safe_names.relative(name)
  assert str(stop.value).isprintable() and len(str(stop.value)) < 300


@pytest.mark.parametrize("name", [None, 3, ["a"], b"a"])
def test_what_is_no_text_is_no_name(name):
  with pytest.raises(ValueError, match="is refused: it is no text"):
    safe_names.relative(name)


@pytest.mark.parametrize(
  ("name", "made"),
  [
    ("a.png", "a.png"),
    ("./cats//1.png", "cats/1.png"),
    ("cats/./1.png", "cats/1.png"),
    ("...", "..."),
    ("..a/b..", "..a/b.."),
    ("console/auxiliary.png", "console/auxiliary.png"),
    ("猫/é 1 (2).png", "猫/é 1 (2).png"),
    ("12:30:05.png", "12:30:05.png"),
  ],
)
def test_a_sound_name_is_what_it_says(name, made):
  assert safe_names.relative(name) == made


@pytest.mark.parametrize("name", ["a/b", "./a", "a/", "/a", "..", "a\\b"])
def test_a_flat_name_has_no_folder(name):
  assert safe_names.flat("a.array_record") == "a.array_record"
  with pytest.raises(ValueError, match="is refused"):
    safe_names.flat(name)
