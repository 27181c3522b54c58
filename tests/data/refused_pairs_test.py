"""Tests that other, damaged or impossible pairs are refused in one line."""

import dataclasses
import errno
import json
import re

import numpy as np
import pytest

from diffdistill.data import shards
from diffdistill.system.files import read_json, write_atomically, write_json

ALL = range(8)  # the 6 shards to train on, and the 2 that are held out


def silent(line):
  pass


def test_other_noise_is_refused(make_store):
  store, teacher = make_store(store_noise=False)
  store.make([0], silent)
  other = dataclasses.replace(
    store, noise=lambda first, n: -teacher.noise(0, n)
  )
  with pytest.raises(ValueError, match="is not the same here as") as refusal:
    other.read(0)
  assert "store_noise=True" in str(refusal.value)


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
  # Flip a byte of an image, because only a checksum can detect this.
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
    # The limit is one byte less than the 20 pairs need, with 16 bytes each.
    ({"max_gigabytes": 319e-9}, "one shard and the held-out pairs take 320 b"),
    ({"store_noise": False, "noise": None}, "draws the noise again; pass noi"),
  ],
)
def test_wrong_fields_are_refused_at_construction(make_store, fields, words):
  with pytest.raises(ValueError, match=words) as refusal:
    make_store(**fields)
  assert "\n" not in str(refusal.value)
