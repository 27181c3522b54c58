"""The sheets of a run, which the page carries in itself."""

import base64
import dataclasses
import io
from collections.abc import Sequence

from etils import epath
from PIL import Image as PillowImage

from diffdistill.reporting.markup import Html, broken, element, join
from diffdistill.system.files import matching

# Sheets that are larger are embedded as JPEG, and no wider than this.
PNG_BYTES = 250_000
PIXELS = 1600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A sheet of images that the page carries in itself."""

  name: str
  data: str
  width: int
  height: int


def read_pictures(
  workdir: epath.Path, rounds: Sequence[str], notes: list[str]
) -> tuple[Picture | None, tuple[Picture, ...]]:
  """The sheet of all models, and those of the rounds in their order.

  Args:
    workdir: of the run.
    rounds: their names.
    notes: gets what cannot be read.
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
  """A sheet as a data URI; a large one smaller, and as JPEG."""
  data, kind = path.read_bytes(), "png"
  try:
    with PillowImage.open(io.BytesIO(data), formats=("PNG",)) as image:
      # The checksums, which decoding leaves out.
      image.verify()
    with PillowImage.open(io.BytesIO(data), formats=("PNG",)) as image:
      image.load()
      width, height = image.size
      if len(data) > PNG_BYTES:
        # A row of a sheet is not to be cut, so the height may be larger.
        shrink = max(1.0, width / PIXELS)
        width, height = round(width / shrink), round(height / shrink)
        smaller = image.convert("RGB").resize((width, height))
        stream = io.BytesIO()
        smaller.save(stream, "JPEG", quality=88)
        data, kind = stream.getvalue(), "jpeg"
  except (OSError, ValueError, SyntaxError):
    # Pillow's own for a damaged PNG, which name its memory and not the file.
    notes.append(f"samples/{path.name} is no PNG that can be read.")
    return None
  return Picture(
    name=name,
    data=f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
    width=width,
    height=height,
  )


def sheets(
  compared: Picture | None, of_rounds: Sequence[Picture], heading: str
) -> Html:
  """The part of the page that shows images; `heading` is of its titles."""
  parts: list[Html] = []
  if compared is not None:
    picture = _image(
      compared,
      "Rows of images, one row a model and number of steps; those of a column"
      " are from the same noise",
    )
    box = element(
      "div",
      picture,
      class_="scroll",
      tabindex=0,
      role="region",
      aria_label="Teacher and students from the same noise",
    )
    caption = element(
      "figcaption",
      "The teacher and its students; a column is one noise.",
    )
    parts += [
      element(heading, "From the same noise"),
      element("figure", box, caption),
    ]
  if of_rounds:
    figures = [
      element(
        "figure",
        _image(sheet, f"A sheet of images that {sheet.name} made"),
        element("figcaption", broken(sheet.name)),
      )
      for sheet in of_rounds
    ]
    parts += [
      element(heading, "Samples of each round"),
      element("div", *figures, class_="sheets"),
    ]
  if not parts:
    parts = [
      element("p", "There are no sheets of samples yet.", class_="muted")
    ]
  return join(parts)


def _image(picture: Picture, alt: str) -> Html:
  return element(
    "img",
    src=picture.data,
    width=picture.width,
    height=picture.height,
    alt=alt,
  )
