"""Archives of others: what is in them is checked before it is unpacked."""

import io
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from cmjax.base import limits, zip_files


@pytest.fixture(autouse=True)
def _own_limits(monkeypatch):
  monkeypatch.setattr(limits, "_raised", {})
  monkeypatch.setattr(limits, "FREE", 2**16)  # so that small bombs are bombs


def archive(*entries, method=zipfile.ZIP_DEFLATED):
  """A zip of (name or ZipInfo, bytes)."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as made:
    for name, data in entries:
      made.writestr(name, data)
  return file


def entry(name, mode=stat.S_IFREG | 0o644, system=3):
  info = zipfile.ZipInfo(name)
  info.external_attr, info.create_system = mode << 16, system
  return info


def members(file):
  return zip_files.members(zip_files.opened(file))


def renamed(old, new):
  """A zip with a name in it changed to one that `zipfile` would not write."""
  return io.BytesIO(archive((old, b"x")).getvalue().replace(old.encode(), new))


def test_files_come_back_under_safe_names_in_their_order():
  file = archive(("b/1.png", b"1"), ("a//./2.png", b"2"), ("a/", b""), (entry("c", 0), b"3"))
  found = members(file)
  assert list(found) == ["b/1.png", "a/2.png", "c"]
  with zip_files.opened(file) as opened:
    assert [zip_files.read(opened, info) for info in found.values()] == [b"1", b"2", b"3"]


HOSTILE = {
  "above": (lambda: archive(("../x", b"")), "leaves its folder"),
  "above a folder": (lambda: archive(("a/../../x", b"")), "leaves its folder"),
  "a folder above": (lambda: archive(("../x/", b"")), "leaves its folder"),
  "absolute": (lambda: archive(("/etc/x", b"")), "begins at the root"),
  "a drive": (lambda: archive(("C:/x", b"")), "drive letter"),
  "a backslash": (lambda: renamed("abcd", b"..\\d"), "backslash"),
  "a NUL": (lambda: renamed("abcd", b"ab\0d"), "control characters"),
  "an escape": (lambda: renamed("abcd", b"\x1b[2J"), "control characters"),
  "a device's name": (lambda: archive(("nul.png", b"")), "device"),
  "a link": (lambda: archive((entry("x", stat.S_IFLNK | 0o777), b"/etc/passwd")), "is a link"),
  "a device": (lambda: archive((entry("x", stat.S_IFCHR), b"")), "no regular file"),
  "a pipe": (lambda: archive((entry("x", stat.S_IFIFO), b"")), "no regular file"),
  "a socket": (lambda: archive((entry("x", stat.S_IFSOCK), b"")), "no regular file"),
  "the same by another spelling": (lambda: archive(("a/x", b"1"), ("a//x", b"2")), "twice"),
  "no zip": (lambda: io.BytesIO(b"PK" * 100), "not a zip"),
  "nothing": (lambda: io.BytesIO(b""), "not a zip"),
  "cut off": (lambda: io.BytesIO(archive(("a", b"1" * 99)).getvalue()[:-8]), "not a zip"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_means_harm_is_refused(name):
  make, message = HOSTILE[name]
  with pytest.raises(ValueError, match=message) as stop:
    members(make())
  assert str(stop.value).isprintable()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused():
  with pytest.raises(ValueError, match="it has 'a' twice"):
    members(archive(("a", b"1"), ("a", b"2")))


def directory_changed(file, **fields):
  """The zip with numbers of its only entry changed, in the directory."""
  data = bytearray(file.getvalue())
  at = data.rindex(b"PK\1\2")
  places = {"compress_type": ("<H", 10), "compress_size": ("<L", 20), "file_size": ("<L", 24)}
  for key, value in fields.items():
    struct.pack_into(places[key][0], data, at + places[key][1], value)
  return io.BytesIO(bytes(data))


BOMBS = {
  "deflate": (lambda: archive(("x", bytes(2**22))), "zip_ratio=200"),
  "said to be small packed": (
    lambda: directory_changed(archive(("x", b"a" * 99)), file_size=2**31),
    "would unpack .* bytes to 2147483648: .*zip_ratio=200",
  ),
  "large": (
    lambda: directory_changed(
      archive(("x", b"a" * 99), method=zipfile.ZIP_STORED), compress_size=2**27, file_size=2**29
    ),
    "overlap",
  ),
  "lzma": (lambda: archive(("x", bytes(2**20)), method=zipfile.ZIP_LZMA), "packed by method 14"),
  "bzip2": (lambda: archive(("x", bytes(2**20)), method=zipfile.ZIP_BZIP2), "packed by method 12"),
  "no method": (lambda: directory_changed(archive(("x", b"1")), compress_type=99), "method 99"),
  "says less than it has": (
    lambda: directory_changed(archive(("x", bytes(2**20))), file_size=10),
    "CRC",
  ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_memory_is_taken(name):
  make, message = BOMBS[name]
  file = make()
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message), zip_files.opened(file) as opened:
      for info in zip_files.members(opened).values():
        zip_files.read(opened, info)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
  finally:
    tracemalloc.stop()


def test_limits_of_an_archive_can_be_raised():
  file = archive(("x", np.random.default_rng(0).bytes(2**20)), ("y", b""))
  limits.allow({"zip_member_bytes": 2**19})
  with zip_files.opened(file) as opened:
    info = zip_files.members(opened)["x"]
    with pytest.raises(ValueError, match="too many bytes: 1048576 is above .*zip_member_bytes="):
      zip_files.read(opened, info)
    limits.allow({"zip_member_bytes": 2**20})
    assert len(zip_files.read(opened, info)) == 2**20


@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 70])
def test_files_are_counted_where_they_will_be_looked_for(comment, monkeypatch):
  file = archive(*((f"{i}", b"") for i in range(50)))
  with zipfile.ZipFile(file, "a") as opened:
    opened.comment = comment
  limits.allow({"zip_entries": 49})
  monkeypatch.setattr(zipfile, "ZipFile", None)  # which would make an object of each
  with pytest.raises(ValueError, match="too many files: 50 is above the limit zip_entries=49"):
    zip_files.opened(file)


def test_any_changed_byte_is_the_archive_or_one_line():
  whole = archive(*((f"a/{i}.png", bytes([i]) * 40) for i in range(4))).getvalue()
  rng = np.random.default_rng(0)
  for _ in range(300):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    try:
      with zip_files.opened(io.BytesIO(bytes(data))) as opened:
        for info in zip_files.members(opened).values():
          zip_files.read(opened, info)
    except ValueError as error:
      assert str(error)
