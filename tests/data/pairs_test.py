"""Tests that pairs are made once, kept whole, and not mixed with others."""

import numpy as np
import pytest

from diffdistill.data import shards
from diffdistill.data.pairs import PairStore
from diffdistill.images import to_uint8
from diffdistill.system import hosts
from diffdistill.system.files import write_atomically

ALL = range(8)  # the 6 shards to train on, and the 2 that are held out


def silent(line):
  pass


def equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_a_shard_holds_the_pairs_of_its_numbers(make_store):
  store, teacher = make_store()
  store.make([2, 7], silent)
  for shard, first, count in ((2, 16, 8), (7, 56, 4)):
    noise, image, label = teacher.draw(first, count)
    arrays = store.read(shard)
    assert sorted(arrays) == ["image", "label", "noise"]
    assert arrays["noise"].dtype == np.float16
    np.testing.assert_array_equal(arrays["noise"].astype(np.float32), noise)
    np.testing.assert_array_equal(arrays["image"], to_uint8(image), strict=True)
    np.testing.assert_array_equal(arrays["label"], label, strict=True)


def test_pairs_without_classes_have_no_labels(make_store):
  store, _ = make_store(num_classes=0)
  store.make([0], silent)
  assert sorted(store.read(0)) == ["image", "noise"]


def test_images_are_rounded_to_bytes_as_for_metrics(make_store):
  """Tests half levels, their neighbours, and values outside [-1, 1]."""
  half = np.arange(-3, 513, dtype=np.float32) / 255 - 1
  values = np.concatenate(
    [half, np.nextafter(half, -9), np.nextafter(half, 9)], dtype=np.float32
  )
  images = values.reshape(-1, 2, 2, 1)
  count = len(images)

  def draw(first, number):
    return np.zeros(images.shape, np.float32), images, None

  store, _ = make_store(
    draw=draw, num_classes=0, num_pairs=count, shard_size=count
  )
  store.make([0], silent)
  np.testing.assert_array_equal(store.read(0)["image"], to_uint8(images))


@pytest.mark.parametrize("draw_size", [1, 3, 8])
def test_pairs_do_not_depend_on_how_many_are_drawn_at_once(
  make_store, draw_size
):
  whole, teacher = make_store()
  whole.make(ALL, silent)
  assert teacher.drawn[0] == (0, 8)
  other, teacher = make_store("other", draw_size=draw_size)
  other.make(ALL, silent)
  assert max(count for _, count in teacher.drawn) == draw_size
  for shard in ALL:
    equal(whole.read(shard), other.read(shard))


@pytest.mark.parametrize("draw_size", [0, 3])
def test_noise_drawn_again_is_the_stored_noise_bit_for_bit(
  make_store, draw_size
):
  stored, _ = make_store()
  again, _ = make_store("again", store_noise=False, draw_size=draw_size)
  for store in (stored, again):
    store.make(ALL, silent)
  for shard in ALL:
    equal(stored.read(shard), again.read(shard))
  sizes = [
    sum(p.stat().length for p in store.directory.glob("*.npz"))
    for store in (stored, again)
  ]
  # The noise of 60 pairs takes 480 bytes: four values of two bytes each. The
  # tolerance is for the headers of 8 shards.
  assert sizes[0] - sizes[1] == pytest.approx(480, abs=8 * 80)


def test_only_missing_shards_are_made(make_store):
  store, teacher = make_store()
  said = []
  assert store.make([0, 1, 4], said.append) == 24
  assert store.make([0, 1, 2, 7], said.append) == 12
  assert [first // 8 for first, _ in teacher.drawn] == [0, 1, 4, 2, 7]
  assert said[-1] == "shard 7 is made: 4 pairs, 64 bytes"
  assert len(said) == 5


def test_a_killed_run_makes_one_shard_again(make_store, monkeypatch, files_of):
  whole, _ = make_store("whole")
  whole.fill(silent)
  store, teacher = make_store()

  def killed(path, data):
    if path.name == "00003.npz":
      path.with_name(f".{path.name}.partial").write_bytes(data[:100])
      raise KeyboardInterrupt
    write_atomically(path, data)

  monkeypatch.setattr(shards, "write_atomically", killed)
  with pytest.raises(KeyboardInterrupt):
    store.fill(silent)
  assert ".00003.npz.partial" in files_of(store)
  monkeypatch.undo()
  assert store.fill(silent) == 8 * 3 + 12
  assert [first // 8 for first, _ in teacher.drawn] == [0, 1, 2, 3, *ALL[3:]]
  assert files_of(store) == files_of(whole)
  for name in files_of(whole):
    one, other = (s.directory / name for s in (whole, store))
    assert one.read_bytes() == other.read_bytes()
  # If a user removes a damaged shard, only this shard is made again.
  (store.directory / "00005.npz").unlink()
  assert store.fill(silent) == 8
  assert store.fill(silent) == 0


def test_fill_makes_the_first_pool_and_the_held_out_pairs(make_store, files_of):
  # The limit is one byte less than four shards of 8 pairs and 12 held-out
  # pairs need, with 16 bytes for each pair.
  store, _ = make_store(max_gigabytes=(4 * 8 * 16 + 12 * 16 - 1) / 1e9)
  assert store.capacity == 3
  assert store.fill(silent) == 3 * 8 + 12
  names = [f"{shard:05d}.npz" for shard in (0, 1, 2, 6, 7)]
  assert files_of(store) == [*names, "manifest.json"]


def test_keep_does_not_remove_the_held_out_pairs(make_store, files_of):
  store, _ = make_store()
  store.fill(silent)
  store.keep(range(2, 4))
  names = [f"{shard:05d}.npz" for shard in (2, 3, 6, 7)]
  assert files_of(store) == [*names, "manifest.json"]


@pytest.mark.parametrize(
  ("max_gigabytes", "store_noise", "capacity", "line"),
  [
    (
      0.0,
      True,
      10,
      "1,024,000 pairs and 51,200 held out, 9.9 GB on disk; 3.3 GB with"
      " store_noise=False",
    ),
    (
      0.0,
      False,
      10,
      "1,024,000 pairs and 51,200 held out, 3.3 GB on disk",
    ),
    (
      5.0,
      True,
      4,
      "1,024,000 pairs and 51,200 held out, 4.2 GB on disk; a rolling pool of"
      " 4 of 10 shards; 1.4 GB with store_noise=False",
    ),
  ],
)
def test_the_size_of_pairs_of_cifar_is_known(
  make_store, max_gigabytes, store_noise, capacity, line
):
  store, _ = make_store(
    image_shape=(32, 32, 3),
    num_classes=0,
    num_pairs=1_024_000,
    held_out=51_200,
    shard_size=102_400,
    max_gigabytes=max_gigabytes,
    store_noise=store_noise,
  )
  assert (store.capacity, store.summary()) == (capacity, line)


def test_other_processes_draw_but_neither_write_nor_remove(
  make_store, monkeypatch
):
  """Tests that all processes use the first one's view of the disk."""
  store, teacher = make_store()
  found = [None, [], None, None]
  monkeypatch.setattr(hosts, "on_first", lambda act: found.pop(0))
  store.claim()
  assert store.make([0, 1], silent) == 16
  assert [first // 8 for first, _ in teacher.drawn] == [0, 1]
  assert not found
  assert not store.directory.exists()
  monkeypatch.undo()
  store.make([0, 1], silent)
  monkeypatch.setattr(hosts, "on_first", lambda act: None)
  store.keep([])
  assert sorted(store._present()) == [0, 1]


def test_a_store_may_have_no_limit_and_no_held_out_pairs(make_store, files_of):
  store, _ = make_store(held_out=0, noise=None)
  assert isinstance(store, PairStore)
  assert store.fill(silent) == 48
  assert len(files_of(store)) == 7
