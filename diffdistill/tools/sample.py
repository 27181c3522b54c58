"""The command that draws images from a finished model."""

import dataclasses
import functools
import io

import numpy as np
from etils import epath

from diffdistill.evaluation import grids
from diffdistill.evaluation.interpolated import interpolated
from diffdistill.images import from_uint8, to_uint8
from diffdistill.run import environment, from_config
from diffdistill.run.kept_names import check_out
from diffdistill.system import hosts
from diffdistill.system.files import write_atomically
from diffdistill.tools.finished import finished_model
from diffdistill.tools.speaking import answer
from diffdistill.training.effects import check_images


def sample(
  workdir: epath.Path,
  round_name: str | None,
  num_images: int,
  num_steps: int | None,
  seed: int,
  label: int | None,
  guidance: float | None,
  interpolate: int | None,
  out: epath.Path,
) -> None:
  """Images of one model: a .png sheet, or an .npz of bytes under "images".

  Args:
    workdir: of the run.
    round_name: whose; the last finished one by default.
    num_images: how many; rows of them, with `interpolate`.
    num_steps: of the sampler; by default those that the student was made for.
    seed: of the noise.
    label: the class of all images; by default they take turns.
    guidance: the weight; by default the config's for a teacher, 0 for others.
    interpolate: images a row, from one noise to another (Luhman & Luhman 2021
      show 11); by default every image has noise of its own.
    out: where to.

  Raises:
    ValueError: for a round or an ending that is not there.
  """
  if out.suffix not in (".png", ".npz"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .png or .npz"
    )
  if num_images < 1:
    raise ValueError(f"num_images is {num_images}; pass 1 or more")
  if interpolate is not None and interpolate < 2:
    raise ValueError(f"interpolate is {interpolate}; pass 2 images or more")
  run = from_config.reopen(workdir)
  environment.check(workdir)
  replaced = check_out(out, [workdir], run.config["stages"])
  stage, round_, steps = finished_model(run, workdir, round_name, num_steps)
  sampler = stage.objective.sampler
  assert sampler is not None  # it makes images
  check_images(num_images * (interpolate or 1), run.source.image_shape)
  usual = run.usual_guidance(round_)
  if guidance is not None:
    usual = dataclasses.replace(run.guidance, weight=guidance)
  make = functools.partial(run.generator, sampler, label=label, guidance=usual)
  params = run.product(workdir, round_.name)
  if interpolate is not None:
    rows = interpolated(make(1), params, seed, num_images, interpolate, steps)
    images = to_uint8(rows)
  else:
    generator = make(min(run.evaluation.batch_size, num_images))
    batches = generator.batches(params, seed, num_images, steps)
    images = np.concatenate([to_uint8(batch) for batch in batches])
  if out.suffix == ".npz":
    data = io.BytesIO()
    np.savez_compressed(data, images=images)
    hosts.on_first(lambda: write_atomically(out, data.getvalue()))
  else:
    sheet = grids.sheet(from_uint8(images), interpolate)
    hosts.on_first(lambda: grids.save_png(sheet, out))
  answer(
    f"{len(images)} images of {round_.name} in {steps} steps: {out}{replaced}"
  )
