"""A reference is made only once for the same data and network."""

import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation.features import Features, reference_statistics
from diffdistill.evaluation.frechet import frechet_distance
from diffdistill.judging.kept_reference import kept_reference

SHAPE = (2, 2, 1)


def features(images):
  rows = images.reshape(len(images), -1)
  return Features(rows[:, :3], np.full((len(rows), 2), 0.5, np.float32))


@pytest.fixture
def get(tmp_path):
  """Gets the reference, and whether it was made now, for a name of the data."""
  folder = epath.Path(tmp_path)
  data = np.random.default_rng(0).uniform(-1, 1, (40, *SHAPE))
  said = []

  def get(made_of="net 1 of data 1", images=data):
    made = []

    def make():
      made.append(1)
      return reference_statistics([images.astype(np.float32)], features)

    reference = kept_reference(
      folder / "evaluated" / "reference.npz",
      made_of,
      make,
      detector="net",
      image_shape=SHAPE,
      features=features,
      say=said.append,
    )
    return reference, bool(made)

  get.said = said
  return get


def test_a_kept_reference_is_the_same_bit_for_bit(get):
  (first, made), (second, again) = get(), get()
  assert (made, again) == (True, False)
  for a, b in (
    (first.moments.mean, second.moments.mean),
    (first.moments.cov, second.moments.cov),
    (first.pooled, second.pooled),
  ):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype
  assert second.moments.count == 40
  assert second.stated
  other = reference_statistics([np.ones((40, *SHAPE), np.float32)], features)
  assert frechet_distance(first.moments, other.moments) == frechet_distance(
    second.moments, other.moments
  )


def test_a_reference_of_other_weights_or_data_is_made_again(get):
  get()
  assert get(made_of="net 2 of data 1")[1]
  assert get.said == []  # no warning, because no file is damaged
  assert get(made_of="net 1 of data 1")[1]


@pytest.mark.parametrize("name", ["reference.npz", "reference.json"])
def test_a_damaged_or_foreign_reference_is_made_again(get, tmp_path, name):
  whole, _ = get()
  path = tmp_path / "evaluated" / name
  data = path.read_bytes()
  for other in (data[:-9], b"", data + b" x"):
    path.write_bytes(other)
    get.said.clear()
    reference, made = get()
    assert made
    (line,) = get.said
    assert line.startswith(f"warning: {tmp_path}/evaluated/reference.")
    assert " is damaged: " in line
    assert line.endswith("is made again")
    np.testing.assert_array_equal(reference.moments.mean, whole.moments.mean)
  path.unlink()
  assert get()[1]


def test_a_reference_is_made_again_after_a_kill_between_its_two_files(
  get, tmp_path
):
  get()
  says = tmp_path / "evaluated" / "reference.json"
  before = says.read_bytes()
  # A kill after the new .npz was written leaves the old JSON file.
  get(made_of="net 1 of data 2", images=np.zeros((40, *SHAPE)))
  says.write_bytes(before)
  reference, made = get()
  assert made
  assert np.abs(reference.moments.mean).max() > 0
