import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.arrays import Condition
from diffdistill.images import to_uint8
from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.training.fingerprint import fingerprint


@pytest.fixture
def store_of(pairs_config, tmp_path, moved):
  """Makes the store of a pairs stage, with its teacher and its experiment."""

  def make(**fields):
    config = copy.deepcopy(pairs_config)
    config["stages"]["pairs"] |= fields
    built = from_config.build(config)
    teacher, (stage, round_) = moved(built), built.rounds["pairs"]
    store = pair_store(built, epath.Path(tmp_path), stage, round_, teacher)
    return store, teacher, built

  return make


def test_labels_of_pairs_are_as_frequent_as_in_the_data(
  pairs_config, moved, tmp_path
):
  path = tmp_path / "unequal.npz"
  np.savez(
    path,
    image=np.zeros((10, 2, 2, 1), np.uint8),
    label=np.repeat([0, 2], (8, 2)),
  )
  config = copy.deepcopy(pairs_config)
  config["data"]["source"]["path"] = str(path)
  built = from_config.build(config)
  stage, round_ = built.rounds["pairs"]
  store = pair_store(built, epath.Path(tmp_path), stage, round_, moved(built))
  *_, labels = store.draw(0, 20)
  assert np.bincount(labels).tolist() == [16, 0, 4]
  # The store names the rule of labels, so that pairs with other labels are
  # refused.
  assert "as frequent as in the data" in store.pairs.labels


def test_a_pair_is_noise_and_the_teacher_s_image_of_it(store_of):
  store, teacher, built = store_of()
  noise, images, labels = store.draw(5, 6)
  np.testing.assert_array_equal(labels, np.arange(5, 11) % 3)
  assert noise.dtype == np.float32
  np.testing.assert_array_equal(noise.astype(np.float16), noise)
  sampler = built.stages[0].objective.sampler
  again = sampler(
    built.denoiser.bind(teacher, Condition(label=jnp.asarray(labels))),
    sampler.start(jnp.asarray(noise), 4),
    jax.random.key(0),
    4,
  )
  np.testing.assert_allclose(images, again, atol=1e-5)
  # Pair i does not depend on the other pairs that are drawn with it.
  more = store.draw(0, 20)
  for one, other in zip((noise, images, labels), more, strict=True):
    np.testing.assert_allclose(one, other[5:11], atol=1e-6)
  np.testing.assert_array_equal(store.noise(5, 6), noise)


def test_the_settings_of_pairs_name_all_that_made_them(store_of, tmp_path):
  store, teacher, built = store_of()
  assert store.directory == epath.Path(tmp_path) / "pairs" / "pairs"
  pairs = store.pairs
  assert pairs.teacher == fingerprint(teacher)
  assert (pairs.image_shape, pairs.num_classes) == ((2, 2, 1), 3)
  # Students are judged on the noise of another seed.
  assert pairs.seed not in (built.seed, built.evaluation.seed)
  assert pairs.sampler.startswith("DDIM(")
  elsewhere, _, _ = store_of(path=str(tmp_path / "disk"), store_noise=False)
  assert elsewhere.directory == epath.Path(tmp_path) / "disk"
  assert not elsewhere.pairs.store_noise
  other, _, _ = store_of(sampler={"kind": "ddim", "grid": "karras"})
  assert other.pairs.sampler != pairs.sampler


@pytest.mark.parametrize("store_noise", [True, False])
def test_a_shard_is_read_as_it_was_drawn(store_of, store_noise):
  store, *_ = store_of(store_noise=store_noise)
  store.fill(lambda _: None)
  for shard in (0, 5):
    numbers = store.pairs.numbers(shard)
    noise, images, labels = store.draw(numbers.start, len(numbers))
    read = store.read(shard)
    np.testing.assert_array_equal(read["noise"], noise)
    np.testing.assert_array_equal(read["label"], labels)
    np.testing.assert_array_equal(read["image"], to_uint8(images))
