"""Grids with the names of classes: each name stands where its images are."""

import numpy as np
import pytest

from cmjax.run import writer
from cmjax.run.labelled_grid import LINE, labelled_grid

RNG = np.random.default_rng(0)


def images(count, size=8, channels=1):
  return RNG.uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def ink(pixels):
  """How much of a part is not paper."""
  return int(np.sum(pixels < 128))


@pytest.mark.parametrize(("count", "channels"), [(6, 1), (7, 3), (2, 1)])
def test_few_classes_have_a_column_each_under_their_names(count, channels):
  x, names = images(count, channels=channels), ["ox", "", "W" * 40]
  found = labelled_grid(x, np.arange(count) % 3, names)
  tiles = writer.grid(x, columns=3)
  assert found.dtype == np.uint8 and found.shape == (LINE + tiles.shape[0], *tiles.shape[1:])
  np.testing.assert_array_equal(found[LINE:], tiles)
  top, width = found[:LINE], (tiles.shape[1] + 1) // 3
  parts = [ink(top[:, i * width : (i + 1) * width]) for i in range(3)]
  assert parts[0] > 0 and parts[1] == 0
  # A long name is cut to its own column, and a column without images has none.
  assert (parts[2] > parts[0]) == (count > 2)
  assert (top[:, width - 1] == 255).all()


def test_otherwise_each_image_has_its_name_below():
  x, names = images(5), [f"{i}" if i else "" for i in range(30)]
  labels = np.array([0, 3, 0, 29, 1])
  found = labelled_grid(x, labels, names)
  side = writer.grid(x[:1]).shape[0]
  assert found.shape == (2 * (side + LINE), 3 * (side + 1), 3)
  for i, label in enumerate(labels):
    y, left = i // 3 * (side + LINE), i % 3 * (side + 1)
    tile = found[y : y + side, left : left + side]
    np.testing.assert_array_equal(tile, writer.grid(x[i : i + 1]))
    below = found[y + side : y + side + LINE, left : left + side]
    assert (ink(below) > 0) == (label > 0)


def test_classes_that_do_not_come_in_turn_are_not_put_under_one_name():
  x = images(4)
  assert labelled_grid(x, np.array([0, 0, 1, 1]), ["a", "b"]).shape[0] > 2 * 49 + LINE
