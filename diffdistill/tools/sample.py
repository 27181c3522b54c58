"""The command that draws images from a finished model."""

from etils import epath

from diffdistill.run.kept_names import check_out
from diffdistill.system import hosts
from diffdistill.system.files import write_atomically
from diffdistill.tools.drawing import RunArtist, Wish
from diffdistill.tools.speaking import answer


def sample(
  workdir: epath.Path,
  round_name: str | None,
  num_images: int,
  num_steps: int | None,
  seed: int,
  label: int | None,
  guidance: float | None,
  interpolate: int | None,
  plain: bool,
  out: epath.Path,
) -> None:
  """Writes images of one model: a .png sheet, or an .npz, see `Drawn.npz`.

  Args:
    workdir: the folder of the run.
    round_name: the round of the model; None means the last finished model.
    num_images, num_steps, seed, label, guidance, interpolate: see `Wish`.
    plain: whether a sheet has the images alone, without any text.
    out: the file to write, which ends in .png or .npz.

  Raises:
    ValueError: if the model is not finished or cannot draw such images, if
      `out` has another ending, or if `plain` has no effect.
  """
  if out.suffix not in (".png", ".npz"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .png or .npz"
    )
  if plain and out.suffix == ".npz":
    raise ValueError(
      "plain is set, but an .npz holds no text; leave it out, or pass a name"
      " that ends in .png"
    )
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
  drawn = artist.draw(round_name, wish)
  if out.suffix == ".npz":
    hosts.on_first(lambda: write_atomically(out, drawn.npz()))
  else:
    sheet = drawn.sheet(plain=plain)
    hosts.on_first(lambda: sheet.save(out))
  answer(
    f"{len(drawn.images)} images of {drawn.model} in {drawn.num_steps} steps:"
    f" {out}{replaced}"
  )
