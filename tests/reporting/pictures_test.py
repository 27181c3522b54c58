"""A page holds the sheets as they were drawn, or reports a damaged sheet."""

import io
import random

import numpy as np
import pytest
from etils import epath
from PIL import Image as PillowImage

from diffdistill.reporting.pictures import read_pictures

# The last twelve bytes of a PNG end it and hold nothing.
END = 12


@pytest.fixture
def sheet(tmp_path):
  """The path of a sheet of noise, most of which no compression can shrink."""
  path = tmp_path / "samples" / "teacher.png"
  path.parent.mkdir()
  noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
  PillowImage.fromarray(noise).save(path)
  return path


def test_a_flipped_bit_of_a_sheet_is_reported(sheet, tmp_path):
  data = sheet.read_bytes()
  draw = random.Random(0)
  for _ in range(100):
    place = draw.randrange(8 * (len(data) - END))
    broken = bytearray(data)
    broken[place // 8] ^= 1 << place % 8
    sheet.write_bytes(broken)
    notes = []
    read = read_pictures(epath.Path(tmp_path), ["teacher"], notes)
    assert read == (None, ())
    assert notes == ["samples/teacher.png is no PNG that can be read."]


def test_an_undamaged_sheet_is_copied_unchanged(sheet, tmp_path):
  notes = []
  _, (picture,) = read_pictures(epath.Path(tmp_path), ["teacher"], notes)
  stored = PillowImage.open(io.BytesIO(sheet.read_bytes()))
  assert (picture.width, picture.height) == stored.size
  assert notes == []
