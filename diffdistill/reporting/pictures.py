"""The sheets of sample images of a run, as data that a page can hold."""

import base64
import dataclasses
import io
from collections.abc import Sequence

from etils import epath
from PIL import Image as PillowImage

from diffdistill.system.files import matching

# A sheet with more bytes becomes a JPEG that is at most PIXELS wide.
PNG_BYTES = 250_000
PIXELS = 1600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A sheet of images inside a page.

  Args:
    name: the name of the round, or "compared".
    data: the picture as a data URI.
    width, height: the size in pixels.
  """

  name: str
  data: str
  width: int
  height: int


def read_pictures(
  workdir: epath.Path, rounds: Sequence[str], notes: list[str]
) -> tuple[Picture | None, tuple[Picture, ...]]:
  """The sheet that compares all models, and the sheets of the rounds.

  Args:
    workdir: the workdir of the run.
    rounds: the names of the rounds, in the order of the result.
    notes: a list to which problems are added.
  """
  folder = workdir / "samples"
  names = {name.replace("/", "_"): name for name in rounds}
  found = {path.stem: path for path in matching(folder, "*.png")}
  ordered = [n for n in names if n in found]
  ordered += [n for n in found if n not in names and n != "compared"]
  sheets = [_picture(found[n], names.get(n, n), notes) for n in ordered]
  compared = None
  if "compared" in found:
    compared = _picture(found["compared"], "compared", notes)
  return compared, tuple(sheet for sheet in sheets if sheet is not None)


def _picture(path: epath.Path, name: str, notes: list[str]) -> Picture | None:
  """Reads a sheet as a data URI; makes a large sheet a smaller JPEG."""
  data, kind = path.read_bytes(), "png"
  try:
    with PillowImage.open(io.BytesIO(data), formats=("PNG",)) as image:
      # This checks the checksums, which decoding does not.
      image.verify()
    with PillowImage.open(io.BytesIO(data), formats=("PNG",)) as image:
      image.load()
      width, height = image.size
      if len(data) > PNG_BYTES:
        # The height may be larger than the limit, so that no row is cut.
        shrink = max(1.0, width / PIXELS)
        width, height = round(width / shrink), round(height / shrink)
        smaller = image.convert("RGB").resize((width, height))
        stream = io.BytesIO()
        smaller.save(stream, "JPEG", quality=88)
        data, kind = stream.getvalue(), "jpeg"
  except (OSError, ValueError, SyntaxError):
    # The message of Pillow does not name the file.
    notes.append(f"samples/{path.name} is no PNG that can be read.")
    return None
  return Picture(
    name=name,
    data=f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
    width=width,
    height=height,
  )
