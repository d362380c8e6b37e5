"""Files of arrays: what is good is read, and whatever is wrong is one error with a reason."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from cmjax.base import limits
from cmjax.base.npz import opened


def read(path):
  with opened(path) as file:
    return {name: file[name] for name in file}


@pytest.fixture
def good(tmp_path):
  path = tmp_path / "good.npz"
  np.savez_compressed(path, a=np.arange(5000) % 7, b=np.ones((3, 4), np.float32))
  return path


def test_arrays_come_back_by_name(good):
  found = read(good)
  assert sorted(found) == ["a", "b"]
  np.testing.assert_array_equal(found["a"], np.arange(5000) % 7)
  with opened(good) as file:
    assert "a" in file and "c" not in file


def test_any_start_of_a_file_and_any_changed_byte_is_the_file_or_a_value_error(good, tmp_path):
  whole, path, refused = good.read_bytes(), tmp_path / "bad.npz", 0
  rng = np.random.default_rng(0)
  broken = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
  for place in rng.integers(0, len(whole), 600):
    changed = bytearray(whole)
    changed[place] ^= int(rng.integers(1, 256))
    broken.append(bytes(changed))
  for content in broken:
    path.write_bytes(content)
    try:
      read(path)
    except ValueError as error:
      assert str(error)
      refused += 1
  assert refused > len(broken) // 2


def test_what_is_no_npz_says_why(tmp_path):
  np.save(tmp_path / "one.npy", np.zeros(3))
  with pytest.raises(ValueError, match="it is one array, not an .npz of many"):
    read(tmp_path / "one.npy")
  np.savez(tmp_path / "objects.npz", a=np.array([{}]))
  with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
    read(tmp_path / "objects.npz")
  with pytest.raises(ValueError, match="No such file"):
    read(tmp_path / "none.npz")
  np.savez(tmp_path / "a.npz", a=np.zeros(3))
  with (
    pytest.raises(ValueError, match="^b is not a file in the archive$"),
    opened(tmp_path / "a.npz") as file,
  ):
    file["b"]


# --- files that mean harm ---


def npz_of(path, name="a.npy", data=b"", *, method=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", method) as file:
    file.writestr(name, data)
  return path


def header(descr, shape, version=(1, 0), extra=b""):
  """The header of a .npy, whatever it says, and then these bytes."""
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode()
  length = len(text) + 1
  size = length.to_bytes(2 if version == (1, 0) else 4, "little")
  return b"\x93NUMPY" + bytes(version) + size + text + b"\n" + extra


HOSTILE = {
  "more rows than bytes": (header("'<f4'", "(1000000,)", extra=bytes(40)), "4000000 bytes, but 40"),
  "2^40 rows": (header("'|u1'", f"({2**40},)"), "1099511627776 bytes, but 0"),
  "2^62 x 2^62": (header("'<f8'", f"({2**62}, {2**62})"), "more than 20 digits bytes, but 0"),
  "rows of nothing": (header("'|u1'", f"({2**40}, 0)"), r"1099511627776, 0\), 0 bytes, but 0"),
  "numbers of nothing": (header("'|V0'", f"({2**40},)"), "0 bytes, but 0"),
  "text of 4 GB": (header("'<U1000000000'", "(1,)"), "4000000000 bytes, but 0|not a valid dtype"),
  "negative rows": (header("'|u1'", "(-4, -4)", extra=bytes(16)), "which is no shape"),
  "fewer rows than bytes": (header("'|u1'", "(5,)", extra=bytes(9)), "5 bytes, but 9"),
  "fields": (header("[('a', '<f4')]", "(3,)"), "12 bytes, but 0"),
  "objects": (header("'|O'", "(3,)"), "Object arrays cannot be loaded"),
  "format 3": (header("'<f4'", "(1,)", (3, 0), bytes(4)), "NumPy's format"),
  "deep": (header("(" * 3000 + "1" + ")" * 3000, "(1,)"), "."),
  "no header": (b"\x93NUMPY\1\0\xff\xff", "."),
  "a pickle": (b"\x80\4N.", "."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_array_that_says_it_is_larger_is_refused_before_memory_is_taken(name, tmp_path):
  data, message = HOSTILE[name]
  path = npz_of(tmp_path / "x.npz", data=data)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message) as stop:
      read(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
  finally:
    tracemalloc.stop()
  assert "\n" not in str(stop.value)


def test_an_array_that_unpacks_to_far_more_is_refused_unless_that_is_allowed(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, "_raised", {})
  monkeypatch.setattr(limits, "FREE", 2**16)
  np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**20, np.uint8), b=np.zeros(100))
  with opened(tmp_path / "x.npz") as file:
    assert len(file["b"]) == 100
  with pytest.raises(
    ValueError, match="would unpack .* to 1048704: .*zip_ratio=200. .*--limits=zip"
  ):
    read(tmp_path / "x.npz")
  limits.allow({"zip_ratio": 2000})
  assert read(tmp_path / "x.npz")["a"].shape == (2**20,)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_beside_the_arrays_is_no_array(tmp_path):
  with pytest.raises(ValueError, match="'readme.txt' is no array"):
    read(npz_of(tmp_path / "x.npz", "readme.txt", b"x" * 100))
  with zipfile.ZipFile(npz_of(tmp_path / "y.npz", data=header("'|u1'", "(0,)")), "a") as file:
    file.writestr("a.npy", header("'|u1'", "(1,)", extra=b"1"))
  with pytest.raises(ValueError, match="it has 'a' twice"):
    read(tmp_path / "y.npz")


@pytest.mark.parametrize(
  "array",
  [np.zeros(()), np.zeros(0), np.zeros((0, 3)), np.array("text"), np.zeros((2, 3), order="F"),
   np.ones(3, bool), np.ones(2, ">f4")],
  ids=str,
)  # fmt: skip
def test_sound_arrays_of_every_kind_are_read(tmp_path, array):
  np.savez(tmp_path / "x.npz", a=array)
  np.testing.assert_array_equal(read(tmp_path / "x.npz")["a"], array)
