"""Sheets of images without text, as pixels and as files."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffdistill.evaluation import grids


def ramp(count, size=8, channels=1):
  """Images with one grey level each: image i has level 2 i / count - 1."""
  levels = (2 * np.arange(count) / count - 1).astype(np.float32)
  levels = levels[:, None, None, None]
  return np.broadcast_to(levels, (count, size, size, channels))


def test_a_sheet_shows_each_image_once_in_reading_order():
  picture = np.asarray(grids.sheet(ramp(5), columns=3, scale=2))
  side, gap = 16, 2
  assert picture.shape == (2 * side + 3 * gap, 3 * side + 4 * gap)
  for i in range(5):
    row, column = divmod(i, 3)
    top, left = gap + row * (side + gap), gap + column * (side + gap)
    cell = picture[top : top + side, left : left + side]
    assert np.unique(cell).tolist() == [round(255 * i / 5)]
  # The empty cell and the gaps are white.
  assert np.unique(picture[-side - gap :, -side - gap :]).tolist() == [255]
  assert np.unique(picture[:gap]).tolist() == [255]


def test_tiny_images_are_enlarged_and_large_ones_are_not():
  assert grids.sheet(ramp(1, size=8)).size == (48 + 4, 48 + 4)
  assert grids.sheet(ramp(1, size=64)).size == (64 + 4, 64 + 4)
  assert grids.sheet(ramp(9)).size == (3 * 50 + 2, 3 * 50 + 2)
  assert grids.sheet(ramp(2, channels=3)).mode == "RGB"


def test_enlarging_repeats_pixels():
  images = np.array([[-1.0, 1.0], [1.0, -1.0]]).reshape(1, 2, 2, 1)
  inside = np.asarray(grids.sheet(images, scale=3))[2:-2, 2:-2]
  expected = np.kron([[0, 255], [255, 0]], np.ones((3, 3)))
  np.testing.assert_array_equal(inside, expected)


def test_arrays_that_are_no_images_are_refused():
  with pytest.raises(ValueError, match=r"got \(2, 1, 1, 2\)"):
    grids.sheet(np.zeros((2, 1, 1, 2)))
  with pytest.raises(ValueError, match="columns is 0; pass 1 or more"):
    grids.sheet(ramp(2), columns=0)
  with pytest.raises(ValueError, match="scale is 0; pass 1 or more"):
    grids.sheet(ramp(2), scale=0)


def test_a_png_is_small_and_replaces_the_old_one(tmp_path):
  path = tmp_path / "deep" / "sheet.png"
  noise = np.random.default_rng(0).uniform(-1, 1, (64, 32, 32, 3))
  grids.save_png(grids.sheet(ramp(4)), path)
  picture = grids.sheet(noise)
  grids.save_png(picture, path)
  # Noise is the worst case: 64 colour images of 32 x 32.
  assert path.stat().st_size < 300_000
  with Image.open(path) as read:
    np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
  assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_failed_write_leaves_the_old_png(tmp_path, monkeypatch):
  path = tmp_path / "sheet.png"
  grids.save_png(grids.sheet(ramp(4)), path)
  before = path.read_bytes()

  def torn(self, data):
    with self.open("wb") as file:
      file.write(data[:10])
    raise OSError("disk full")

  monkeypatch.setattr(type(epath.Path(path)), "write_bytes", torn)
  with pytest.raises(OSError, match="disk full"):
    grids.save_png(grids.sheet(ramp(9)), path)
  assert path.read_bytes() == before
