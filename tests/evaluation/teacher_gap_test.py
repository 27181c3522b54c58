"""The teacher gap is right for images with known differences."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.evaluation.teacher_gap import teacher_gap


def random_images(count=12):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(count, 3, 2, 1)) + 5).astype(np.float32)


def test_the_gap_of_a_constant_offset_is_the_offset():
  teacher = random_images()
  gap = teacher_gap([jnp.asarray(teacher + 0.25)], [jnp.asarray(teacher)])
  assert gap.rms == pytest.approx(0.25, rel=1e-6)
  spread = np.sqrt(((teacher - teacher.mean(axis=0)[None]) ** 2).mean())
  assert gap.relative == pytest.approx(0.25 / spread, rel=1e-5)
  assert gap.num_images == 12


def test_always_drawing_the_mean_image_gives_relative_gap_one():
  teacher = random_images()
  mean = np.broadcast_to(teacher.mean(axis=0)[None], teacher.shape)
  gap = teacher_gap([mean], [teacher])
  assert gap.relative == pytest.approx(1, rel=1e-6)


def test_the_gap_does_not_depend_on_the_batch_size():
  teacher, student = random_images(), 2 * random_images()
  whole = teacher_gap([student], [teacher])
  cuts = [1, 5, 6]
  parts = teacher_gap(
    iter(np.split(student, cuts)), iter(np.split(teacher, cuts))
  )
  assert parts.rms == pytest.approx(whole.rms, rel=1e-12)
  assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


def test_equal_images_have_no_gap():
  images = random_images()
  gap = teacher_gap([images], [images])
  assert (gap.rms, gap.relative) == (0, 0)
  assert np.isnan(teacher_gap([images[:1]], [images[:1]]).relative)


def test_streams_of_different_length_or_shape_are_refused():
  images = random_images()
  with pytest.raises(ValueError, match="teacher gave fewer batches"):
    teacher_gap([images, images], [images])
  with pytest.raises(ValueError, match="student gave fewer batches"):
    teacher_gap([], [images])
  with pytest.raises(ValueError, match=r"\(4, 3, 2, 1\) but the teacher's"):
    teacher_gap([images[:4]], [images])
  with pytest.raises(ValueError, match="0 images"):
    teacher_gap([], [])
