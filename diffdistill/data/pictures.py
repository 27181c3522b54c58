"""Decodes picture files to arrays of bytes, as a viewer shows them.

Pillow's decoders of the formats below run no other program and read no other
file. Some formats are left out on purpose: EPS, PS and PDF (they run
Ghostscript), PSD, XCF and SVG (layers or shapes must be rendered), WMF and EMF
(only Windows renders them), HEIC (Pillow has no decoder), camera raw files, and
rare formats.
"""

import functools
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageColor, ImageOps

# Pillow's names of the formats that are read, and the endings of their files.
FORMATS = {
  "AVIF": (".avif", ".avifs"),
  "BMP": (".bmp", ".dib"),
  "GIF": (".gif",),
  "ICO": (".ico",),
  "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
  "PCX": (".pcx",),
  "PNG": (".png", ".apng"),
  "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
  "QOI": (".qoi",),
  "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
  "TGA": (".tga", ".icb", ".vda", ".vst"),
  "TIFF": (".tif", ".tiff"),
  "WEBP": (".webp",),
}
SUFFIXES = tuple(suffix for group in FORMATS.values() for suffix in group)
# Files with these endings may hold several pictures.
SEVERAL = (".apng", ".avif", ".avifs", ".gif", ".mpo", ".tif", ".tiff", ".webp")
# Files with these endings are pictures in formats that are not read.
UNREAD = (
  *(".arw", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".emf", ".eps", ".exr"),
  *(".fits", ".hdr", ".heic", ".heif", ".icns", ".jxl", ".nef", ".npy", ".orf"),
  *(".pdf", ".pfm", ".ps", ".psd", ".raf", ".raw", ".rw2", ".svg", ".wmf"),
  *(".xcf", ".xpm"),
)
MODES_OF_CHANNELS = {1: "L", 3: "RGB"}
GREY = ("1", "L", "LA", "La", "I;16")


def decode(
  data: bytes, channels: int, background: str
) -> UInt8[np.ndarray, "h w c"]:
  """Decodes a picture as a viewer shows it; of several in a file, the first.

  The picture is rotated according to its EXIF data. Transparent pixels are laid
  on the background. CMYK and palettes become RGB, and grey is the luma of RGB
  (ITU-R 601). Colour profiles are not applied. A PNG of 16 bits a channel keeps
  the upper 8 bits.

  Args:
    data: the bytes of the file.
    channels: 3 for RGB, 1 for grey.
    background: a colour, see `colour`.

  Raises:
    Exception: if the data is damaged, has another format or too many pixels;
      the class of the error depends on the format.
    ValueError: if a channel has more than 8 bits and the value of white is not
      known.
  """
  with PillowImage.open(io.BytesIO(data), formats=_formats()) as opened:
    opened.load()
    picture = _eight_bits(ImageOps.exif_transpose(opened), opened.format)
    if picture.has_transparency_data:
      picture = picture.convert("RGBA")
      behind = (*colour(background), 255)
      below = PillowImage.new("RGBA", picture.size, behind)
      picture = PillowImage.alpha_composite(below, picture).convert("RGB")
    elif picture.mode != "L":
      # Pillow converts a palette or CMYK to grey only through RGB.
      picture = picture.convert("RGB")
    array = np.asarray(picture.convert(MODES_OF_CHANNELS[channels]))
  return array.reshape(*array.shape[:2], channels)


def measure(data: bytes) -> tuple[int, bool]:
  """Measures a picture without decoding it.

  Args:
    data: the bytes of the file.

  Raises:
    Exception: if the data is damaged; of the same classes as in `decode`.
  """
  with PillowImage.open(io.BytesIO(data), formats=_formats()) as opened:
    return min(opened.size), opened.mode in GREY


def colour(name: str) -> tuple[int, int, int]:
  """Returns (red, green, blue) of a CSS colour, such as "white" or "#808080".

  Raises:
    ValueError: if the text is not a colour.
  """
  try:
    red, green, blue, *_ = ImageColor.getrgb(name)
  except (ValueError, AttributeError) as error:
    raise ValueError(
      f"background is {name!r}, which is no colour; pass a name such as"
      " 'white', or '#808080'"
    ) from error
  return red, green, blue


@functools.cache
def _formats() -> tuple[str, ...]:
  """Returns the formats that this Pillow reads; its build may lack some."""
  PillowImage.init()
  return tuple(name for name in FORMATS if name in PillowImage.OPEN)


def _eight_bits(
  picture: PillowImage.Image, file_format: str | None
) -> PillowImage.Image:
  """Converts a picture to a mode that Pillow can convert without clipping."""
  if not picture.mode.startswith(("I", "F")):
    return picture
  if file_format != "PNG" or picture.mode != "I;16":
    # Refuse such a picture: Pillow would clip large values, and the file does
    # not state the value of white.
    raise ValueError(
      f"it has more than 8 bits a channel, mode {picture.mode}; convert it to 8"
    )
  values = np.asarray(picture)
  grey = PillowImage.fromarray((values >> 8).astype(np.uint8))
  if "transparency" not in picture.info:
    return grey
  # The file names one value, whose pixels are transparent.
  opaque = np.where(values == picture.info["transparency"], 0, 255)
  alpha = PillowImage.fromarray(opaque.astype(np.uint8))
  return PillowImage.merge("LA", (grey, alpha))
