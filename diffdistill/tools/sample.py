"""The command that draws images from a finished model."""

from etils import epath

from diffdistill.evaluation.titles import in_steps
from diffdistill.run.kept_names import check_out
from diffdistill.system import hosts
from diffdistill.system.files import write_atomically
from diffdistill.tools.drawing import RunArtist
from diffdistill.tools.drawn import Wish
from diffdistill.tools.speaking import answer
from diffdistill.tools.step_by_step import step_by_step

# The number of images, or of noises with `show_steps`, if none is given.
MANY, FEW = 64, 4


def sample(
  workdir: epath.Path,
  round_name: str | None,
  num_images: int | None,
  num_steps: int | None,
  seed: int,
  label: int | None,
  guidance: float | None,
  interpolate: int | None,
  show_steps: bool,
  plain: bool,
  out: epath.Path,
) -> None:
  """Writes images of one model: a .png sheet, or an .npz, see `Drawn.npz`.

  Args:
    workdir: the folder of the run.
    round_name: the round of the model; None means the last finished model.
    num_images: the number of images; None means 64, or 4 with `show_steps`.
    num_steps, seed, label, guidance, interpolate: see `Wish`.
    show_steps: whether to draw each step of a student beside its teacher's.
    plain: whether a sheet has the images alone, without any text.
    out: the file to write, which ends in .png or .npz.

  Raises:
    ValueError: if the model is not finished or cannot draw such images, if
      `out` has another ending, or if a flag has no effect.
  """
  _check_out(out, plain=plain, show_steps=show_steps)
  if show_steps:
    _check_absent(guidance=guidance, interpolate=interpolate)
  if num_images is None:
    num_images = FEW if show_steps else MANY
  wish = Wish(
    num_images=num_images,
    num_steps=num_steps,
    seed=seed,
    label=label,
    guidance=guidance,
    interpolate=interpolate,
  )
  artist = RunArtist(workdir)
  replaced = check_out(out, [workdir], artist.run.config["stages"])
  if show_steps:
    steps = step_by_step(artist, round_name, wish)
    picture = steps.sheet(plain=plain)
    hosts.on_first(lambda: picture.save(out))
    answer(
      f"the steps of {steps.student.model} beside those of"
      f" {steps.teacher.model}: {out}{replaced}"
    )
    return
  drawn = artist.draw(round_name, wish)
  if out.suffix == ".npz":
    hosts.on_first(lambda: write_atomically(out, drawn.npz()))
  else:
    sheet = drawn.sheet(plain=plain)
    hosts.on_first(lambda: sheet.save(out))
  answer(
    f"{len(drawn.images)} images of {drawn.model} in"
    f" {in_steps(drawn.num_steps)}: {out}{replaced}"
  )


def _check_absent(**flags: int | float | None) -> None:
  """Refuses flags that have no effect on a picture of all steps."""
  for flag, given in flags.items():
    if given is not None:
      raise ValueError(
        f"{flag} is {given}, which has no effect with show_steps; leave one of"
        " the two out"
      )


def _check_out(out: epath.Path, **sheet_flags: bool) -> None:
  """Refuses an unknown ending, and flags of a sheet for a file of arrays."""
  if out.suffix not in (".png", ".npz"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .png or .npz"
    )
  for flag, given in sheet_flags.items():
    if given and out.suffix == ".npz":
      raise ValueError(
        f"{flag} is set, but an .npz holds the images alone; leave it out, or"
        " pass a name that ends in .png"
      )
