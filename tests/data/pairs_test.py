"""Pairs are made once, kept whole, and never mixed with other pairs."""

import dataclasses
import errno
import json
import re

import numpy as np
import pytest

from diffdistill.data import shards
from diffdistill.data.pairs import PairStore
from diffdistill.images import to_uint8
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_atomically, write_json

ALL = range(8)  # 6 shards to train on, and 2 held out


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
  """The images hold half levels, neighbours, and values outside [-1, 1]."""
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
  # The noise of 60 pairs has four values of two bytes each; headers differ a
  # bit.
  assert sizes[0] - sizes[1] == pytest.approx(480, abs=8 * 80)


def test_other_noise_is_refused(make_store):
  store, teacher = make_store(store_noise=False)
  store.make([0], silent)
  other = dataclasses.replace(
    store, noise=lambda first, n: -teacher.noise(0, n)
  )
  with pytest.raises(ValueError, match="is not the same here as") as refusal:
    other.read(0)
  assert "store_noise=True" in str(refusal.value)


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
  # A user who removes a damaged shard loses only this shard.
  (store.directory / "00005.npz").unlink()
  assert store.fill(silent) == 8
  assert store.fill(silent) == 0


def test_fill_makes_the_first_pool_and_the_held_out_pairs(make_store, files_of):
  # The limit is one byte less than four shards of 8 pairs and 12 held-out
  # pairs, with 16 bytes per pair.
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


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"teacher": "xyz"}, "whose teacher is 'abc', not 'xyz'; pass that teach"),
    ({"sampler": "Heun()"}, r"sampler is 'DDIM\(\)', not 'Heun\(\)'"),
    ({"num_steps": 8}, "num_steps is 4, not 8"),
    ({"seed": 2}, "seed is 1, not 2"),
    ({"num_classes": 4}, "num_classes is 3, not 4"),
    ({"num_pairs": 56}, "num_pairs is 48, not 56"),
    ({"held_out": 8}, "held_out is 12, not 8"),
    ({"shard_size": 4}, "shard_size is 8, not 4"),
    ({"store_noise": False}, "store_noise is True, not False"),
    ({"image_shape": (4, 1, 1)}, r"is \[2, 2, 1\], not \[4, 1, 1\]"),
  ],
)
def test_other_pairs_are_refused(make_store, fields, words):
  store, _ = make_store()
  store.claim()
  store.claim()
  other, teacher = make_store(**fields)
  for act in (other.claim, lambda: other.fill(silent)):
    with pytest.raises(ValueError, match=words) as refusal:
      act()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(
      "or another directory, or remove this one and the pairs are made again"
    )
  assert not teacher.drawn


def test_a_damaged_directory_is_refused(make_store):
  store, _ = make_store()
  store.make([0, 1], silent)
  with pytest.raises(ValueError, match=r"shards but no manifest\.json; remove"):
    store.claim()
  store.keep([])
  store.claim()
  manifest = store.directory / "manifest.json"
  text = manifest.read_text()
  assert json.loads(text)["num_pairs"] == 48
  changed = text.replace('"num_pairs": 48', '"num_pairs": 49')
  for damage in (text[:40], "[]", "{}", "", "[" * 100_000, changed):
    manifest.write_text(damage)
    with pytest.raises(
      ValueError, match=r"manifest\.json is damaged: .*; remove"
    ):
      store.claim()
  manifest.write_text(text)
  write_json(manifest, read_json(manifest) | {"format": 2})
  with pytest.raises(ValueError, match="is of format 2, not 1; remove its dir"):
    store.claim()


def test_a_shard_cut_short_or_damaged_is_refused(make_store):
  store, _ = make_store()
  store.fill(silent)
  path = store.directory / "00002.npz"
  whole = path.read_bytes()
  path.write_bytes(whole[:-30])
  line = f"{path} is cut short or damaged; remove it and it is made again"
  for act in (store.claim, lambda: store.fill(silent), lambda: store.read(2)):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
      act()
  # The flipped byte is in the images, where only a checksum can detect it.
  image = store.read(3)["image"].tobytes()
  path = store.directory / "00003.npz"
  whole = path.read_bytes()
  assert whole.count(image) == 1
  flipped = bytes([image[9] ^ 1])
  path.write_bytes(whole.replace(image, image[:9] + flipped + image[10:]))
  with pytest.raises(ValueError, match=r"00003\.npz is cut short or damaged"):
    store.read(3)


def test_a_full_disk_keeps_the_finished_shards(
  make_store, monkeypatch, files_of
):
  store, teacher = make_store()

  def full(path, data):
    if path.name == "00002.npz":
      path.with_name(f".{path.name}.partial").write_bytes(data[:50])
      raise OSError(errno.ENOSPC, "No space left on device")
    write_atomically(path, data)

  monkeypatch.setattr(shards, "write_atomically", full)
  with pytest.raises(ValueError, match=r"the disk is full: .*00002\.npz needs"):
    store.fill(silent)
  assert files_of(store) == ["00000.npz", "00001.npz", "manifest.json"]
  monkeypatch.undo()
  teacher.drawn.clear()
  store.fill(silent)
  assert [first // 8 for first, _ in teacher.drawn] == list(ALL[2:])


def test_other_processes_draw_but_neither_write_nor_remove(
  make_store, monkeypatch
):
  """All processes use the first one's view of the disk, in the same order."""
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


def test_bad_noise_and_images_are_refused(make_store):
  store, teacher = make_store()

  def unrounded(first, count):
    noise, image, label = teacher.draw(first, count)
    return noise + np.float32(1e-4), image, label

  def diverged(first, count):
    noise, image, label = teacher.draw(first, count)
    image[[1, 3], 0, 0, 0] = np.nan, np.inf
    return noise, image, label

  for draw, words in (
    (unrounded, "float16 cannot hold the noise; round the noise to"),
    (
      diverged,
      "teacher abc drew: 2 of 8 images hold NaN or infinity: the model has",
    ),
  ):
    with pytest.raises(ValueError, match=words):
      dataclasses.replace(store, draw=draw).make([0], silent)
  assert not store.directory.exists()


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"num_steps": 0}, "num_steps is 0; pass 1 or more"),
    ({"num_pairs": 0}, "num_pairs is 0; pass 1 or more"),
    ({"shard_size": 0}, "shard_size is 0; pass 1 or more"),
    ({"held_out": -1}, "held_out is -1; pass 0 or more"),
    ({"num_classes": -1}, "num_classes is -1; pass 0 or more"),
    ({"seed": -1}, "seed is -1; pass 0 or more"),
    ({"shard_size": 7}, "num_pairs is 48, which shard_size 7 does not divide"),
    ({"draw_size": -1}, "draw_size is -1; pass 0 or more"),
    ({"max_gigabytes": -1.0}, r"max_gigabytes is -1\.0; pass 0 or more"),
    # 20 pairs of 16 bytes are 320 bytes.
    ({"max_gigabytes": 319e-9}, "one shard and the held-out pairs take 320 b"),
    ({"store_noise": False, "noise": None}, "draws the noise again; pass noi"),
  ],
)
def test_wrong_fields_are_refused_at_construction(make_store, fields, words):
  with pytest.raises(ValueError, match=words) as refusal:
    make_store(**fields)
  assert "\n" not in str(refusal.value)


def test_a_store_may_have_no_limit_and_no_held_out_pairs(make_store, files_of):
  store, _ = make_store(held_out=0, noise=None)
  assert isinstance(store, PairStore)
  assert store.fill(silent) == 48
  assert len(files_of(store)) == 7
