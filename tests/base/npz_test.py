"""Files of arrays: what is good is read, and whatever is wrong is one error with a reason."""

import numpy as np
import pytest

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
  for place in rng.integers(0, len(whole), 1_000):
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
