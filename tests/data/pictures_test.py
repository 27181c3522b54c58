"""Tests that pictures of every format and mode are read as a viewer does."""

import io

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from diffdistill.data import pictures
from diffdistill.data.folder import Folder
from diffdistill.data.pictures import decode

GREEN = (10, 200, 30)


def _encoded(picture, form="PNG", **options):
  data = io.BytesIO()
  picture.save(data, form, **options)
  return data.getvalue()


def _of_mode(mode):
  return PillowImage.new("RGB", (8, 6), GREEN).convert(mode)


@pytest.mark.parametrize("form", [*sorted(pictures.FORMATS), "MPO"])
def test_every_format_is_read(form):
  data = _encoded(_of_mode("RGB"), form)
  image = decode(data, 3, "white")
  assert (image.shape, image.dtype) == ((6, 8, 3), np.uint8)
  # The tolerance is for lossy formats, which change values by one or two
  # levels.
  np.testing.assert_allclose(image[0, 0].astype(int), GREEN, atol=2)


@pytest.mark.parametrize(
  ("mode", "form"),
  [("L", "PNG"), ("P", "GIF"), ("1", "TIFF"), ("CMYK", "TIFF"), ("LA", "PNG")],
)
def test_every_mode_becomes_rgb_and_grey(mode, form):
  picture = _of_mode(mode)
  wanted = np.asarray(picture.convert("RGB"))
  data = _encoded(picture, form)
  np.testing.assert_array_equal(decode(data, 3, "white"), wanted)
  grey = np.asarray(PillowImage.fromarray(wanted).convert("L"))
  np.testing.assert_array_equal(decode(data, 1, "white")[..., 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_as_viewers_turn_them(orientation, form):
  pixels = np.zeros((32, 48, 3), np.uint8)
  pixels[:16, :24] = 255
  exif = PillowImage.Exif()
  exif[0x0112] = orientation
  data = _encoded(PillowImage.fromarray(pixels), form, exif=exif)
  with PillowImage.open(io.BytesIO(data)) as opened:
    wanted = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
  image = decode(data, 3, "white")
  np.testing.assert_array_equal(image, wanted)
  corner = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}.get(orientation)
  if corner is not None:
    assert image[corner].min() > 200
    assert image.shape[0] == (48 if orientation > 4 else 32)


def test_transparent_pixels_show_the_background():
  hidden = PillowImage.new("RGBA", (2, 1), (255, 0, 0, 0))
  hidden.putpixel((1, 0), (0, 0, 255, 255))
  data = _encoded(hidden)
  on_white = decode(data, 3, "white")
  assert on_white.tolist() == [[[255, 255, 255], [0, 0, 255]]]
  assert decode(data, 3, "#102030")[0, 0].tolist() == [0x10, 0x20, 0x30]
  assert decode(data, 1, "black")[0, 0].tolist() == [0]
  half = _encoded(PillowImage.new("RGBA", (1, 1), (0, 0, 0, 128)))
  assert abs(int(decode(half, 3, "white")[0, 0, 0]) - 127) <= 1


def test_a_transparent_colour_of_a_palette_shows_the_background():
  picture = PillowImage.new("P", (2, 1))
  picture.putpalette([255, 0, 0, 0, 0, 255])
  picture.putpixel((1, 0), 1)
  for form in ("PNG", "GIF"):
    image = decode(_encoded(picture, form, transparency=0), 3, "white")
    assert image.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_a_transparent_value_of_16_bits_shows_the_background():
  values = np.array([[0, 40_000, 255]], np.uint16)
  data = _encoded(PillowImage.fromarray(values), "PNG", transparency=0)
  image = decode(data, 3, "white")
  assert image.tolist() == [[[255] * 3, [156] * 3, [0] * 3]]
  assert decode(data, 1, "white")[0, 0].tolist() == [255]


def test_the_first_picture_of_an_animation_is_read():
  first, second = (PillowImage.new("RGB", (4, 4), c) for c in (GREEN, "red"))
  for form in ("GIF", "WEBP", "PNG", "TIFF"):
    options = {"lossless": True} if form == "WEBP" else {}
    data = _encoded(
      first, form, save_all=True, append_images=[second], **options
    )
    assert decode(data, 3, "white")[0, 0].tolist() == list(GREEN)


def test_16_bit_grey_is_read_from_png_and_refused_in_other_formats():
  deep = PillowImage.fromarray(np.full((2, 2), 0xABCD, np.uint16))
  assert (decode(_encoded(deep), 1, "white") == 0xAB).all()
  for picture in (deep, deep.convert("I"), deep.convert("F")):
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
      decode(_encoded(picture, "TIFF"), 1, "white")


def _refused_as_file(tmp_path, data, name="a.png"):
  path = tmp_path / "x" / name
  path.parent.mkdir()
  path.write_bytes(data)
  source = Folder(path=str(tmp_path), split="train", image_size=4)
  with pytest.raises(ValueError, match="cannot be decoded") as refusal:
    source.take(np.array([0]))
  assert str(path) in str(refusal.value)
  assert "\n" not in str(refusal.value)
  return str(refusal.value)


def test_a_picture_of_very_many_pixels_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 100)
  data = _encoded(PillowImage.new("RGB", (20, 20)))
  assert "400 pixels" in _refused_as_file(tmp_path, data)


def test_a_file_of_a_format_that_runs_programs_is_not_opened(tmp_path):
  data = _encoded(PillowImage.new("RGB", (4, 4)), "EPS")
  assert "cannot identify" in _refused_as_file(tmp_path, data)
