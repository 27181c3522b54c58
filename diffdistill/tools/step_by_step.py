"""The steps of a student beside those of its teacher, from the same noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from diffdistill.evaluation import grids, titles
from diffdistill.evaluation.labelled import Labels, labelled_sheet
from diffdistill.evaluation.shown import Picture
from diffdistill.images import from_uint8, to_uint8
from diffdistill.run.experiment import Experiment
from diffdistill.tools.drawing import Maker, RunArtist
from diffdistill.tools.drawn import Drawn, Wish

# A student with more steps is shown at so many of them, evenly chosen.
MOST_STEPS = 12
TITLE = (
  "The clean image, as each model predicts it at each step of the student. The"
  " last column is the result."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepByStep:
  """Predicted images of a teacher and its student, from the same noise.

  Args:
    images: for each noise, the teacher's row and the student's row; the last
      column has the sampled images, the other ones are predictions.
    teacher, student: the sampled images of both.
    numbers: the number of each shown step of the student, from 1.
    times: the time t of each of these steps, from 1 (noise) to 0 (data).
  """

  images: UInt8[np.ndarray, "n 2 columns h w c"]
  teacher: Drawn
  student: Drawn
  numbers: Int[np.ndarray, " steps"]
  times: Float[np.ndarray, " steps"]

  def sheet(self, *, plain: bool = False) -> Picture:
    """A picture with two rows for each noise; with `plain`, without text."""
    count, _, columns, *shape = self.images.shape
    images = from_uint8(self.images.reshape(-1, *shape))
    if plain:
      return Picture(grids.as_png(grids.sheet(images, columns)))
    both = titles.row_titles(
      [(one.model, one.num_steps) for one in (self.teacher, self.student)]
    )
    rows = [
      ", ".join([name, *self.student.classes[i : i + 1]])
      for i in range(count)
      for name in both
    ]
    steps = zip(self.numbers, self.times, strict=True)
    labels = Labels(
      title=f"{TITLE} Seed {self.student.wish.seed}.",
      rows=rows,
      columns=[*(f"step {n}, t={t:.2f}" for n, t in steps), "result"],
    )
    return Picture(grids.as_png(labelled_sheet(images, labels, columns)))


def step_by_step(artist: RunArtist, name: str | None, wish: Wish) -> StepByStep:
  """Draws the steps of a student and, at the same times, of its teacher.

  The teacher is the first one, which is no student itself. It takes its usual
  number of steps; of these, the nearest in time to each step of the student are
  shown.

  Args:
    artist: draws images of the run.
    name: the name of the student; None means the last finished one.
    wish: the images to draw, without guidance or interpolation.

  Raises:
    ValueError: if the teacher is not a model of this run, or if a model is not
      finished or cannot draw such images.
  """
  maker = artist.maker(name, wish)
  above = _first_teacher(artist.run, maker.model)
  times = _times(maker)
  count = min(len(times), MOST_STEPS)
  done = np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))
  # The student's row comes first, so that its weights are loaded only once.
  student = artist.draw(name, wish)
  row_of_student = _predicted(maker, wish, done)
  usual = dataclasses.replace(wish, num_steps=None)
  maker = artist.maker(above, usual)
  teacher = artist.draw(above, usual)
  nearest = abs(_times(maker)[:, None] - times[done]).argmin(0)
  row_of_teacher = _predicted(maker, usual, nearest)
  rows = (
    [*row_of_teacher, teacher.images],
    [*row_of_student, student.images],
  )
  return StepByStep(
    images=np.moveaxis(np.array(rows), 2, 0),
    teacher=teacher,
    student=student,
    numbers=done + 1,
    times=times[done],
  )


def _first_teacher(run: Experiment, name: str) -> str:
  """The first model of the chain of teachers that leads to a student."""
  above = name
  while True:
    origin = run.rounds[above][1].frozen.get("teacher", "")
    if origin not in run.rounds:
      break
    above = origin
  if above == name:
    raise ValueError(
      f"{name} has no teacher in this run, so its steps cannot be shown beside"
      " its teacher's; pass a student of this run"
    )
  return above


def _times(maker: Maker) -> Float[np.ndarray, " steps"]:
  """The time at which each step of a model begins."""
  left = jnp.arange(maker.num_steps, 0, -1)
  time = jax.vmap(lambda i: maker.sampler.time(i, maker.num_steps))
  return np.asarray(time(left))


def _predicted(
  maker: Maker, wish: Wish, steps: Int[np.ndarray, " steps"]
) -> list[UInt8[np.ndarray, "n h w c"]]:
  """The predictions after each of these numbers of steps."""
  result = []
  for done in steps:
    batches = maker.generator.predictions(
      maker.params, wish.seed, wish.num_images, maker.num_steps, int(done)
    )
    result.append(np.concatenate([to_uint8(batch) for batch in batches]))
  return result
