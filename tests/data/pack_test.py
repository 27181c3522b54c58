"""Tests that `pack` writes a source so that `Npz` reads the same images."""

import errno

import numpy as np
import pytest
from PIL import Image as PillowImage

from diffdistill.data.folder import Folder
from diffdistill.data.packed import Npz, pack
from diffdistill.data.pipeline import Pipeline
from diffdistill.data.sources import Digits

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6)).astype(np.uint8)
LABELS = np.array([2, 0, 1, 2, 1, 0, 2], np.uint8)
NAMES = ("cat", "dog", "emu")


@pytest.fixture
def folder(tmp_path):
  """Writes PNG files of 6x6: 5 to train and 2 to test, in each of 3 classes."""
  random = np.random.default_rng(0)
  for split, count in (("train", 5), ("test", 2)):
    for name in NAMES:
      inside = tmp_path / "png" / split / name
      inside.mkdir(parents=True)
      for i in range(count):
        pixels = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        PillowImage.fromarray(pixels).save(inside / f"{i}.png")
  return str(tmp_path / "png")


def _packed(source, out) -> tuple[list[str], list[str]]:
  """Packs a source; returns lines about the files and lines of progress."""
  said = []
  return pack(source, str(out), said.append), said


def test_a_packed_folder_keeps_its_images_and_order(folder, tmp_path):
  source = Folder(path=folder, split="train", image_size=6)
  out = tmp_path / "new" / "set_{split}.npz"
  lines, said = _packed(source, out)
  assert lines == [
    f"{tmp_path}/new/set_train.npz: 15 train images of 6x6x3 in 3 classes,"
    f" {(tmp_path / 'new' / 'set_train.npz').stat().st_size / 1e3:.1f} kB",
    f"{tmp_path}/new/set_test.npz: 6 test images of 6x6x3 in 3 classes,"
    f" {(tmp_path / 'new' / 'set_test.npz').stat().st_size / 1e3:.1f} kB",
  ]
  assert said == ["train: 15 of 15 images", "test: 6 of 6 images"]
  # No other file, such as an unfinished one, may be in the folder.
  assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
    "set_test.npz",
    "set_train.npz",
  ]
  train = Npz(path=str(out), split="train")
  for packed, whole in (
    (train, source),
    (train.held_out(), source.held_out()),
  ):
    packed.check()
    everything = np.arange(len(whole))
    expected, taken = whole.take(everything), packed.take(everything)
    assert taken["image"].dtype == np.uint8
    np.testing.assert_array_equal(taken["image"], expected["image"])
    np.testing.assert_array_equal(
      taken["label"], expected["label"], strict=True
    )


def test_a_run_sees_the_same_images_packed_or_not(folder, tmp_path):
  source = Folder(path=folder, split="train", image_size=6)
  _packed(source, tmp_path / "{split}.npz")
  packed = Npz(path=str(tmp_path / "{split}.npz"), split="train", image_size=6)
  one, other = (
    Pipeline(source=s, batch_size=8, seed=1, flip=True).batch(5)
    for s in (source, packed)
  )
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def test_packing_again_gives_the_same_bytes(folder, tmp_path, monkeypatch):
  source = Folder(path=folder, split="train", image_size=6)
  files = []
  # The bytes must not depend on the size of chunks.
  for chunk in (1024, 4):
    monkeypatch.setattr("diffdistill.data.packed.CHUNK", chunk)
    _packed(source, tmp_path / "{split}.npz")
    files.append([p.read_bytes() for p in sorted(tmp_path.glob("*.npz"))])
  assert files[0] == files[1]
  assert len(files[0]) == 2


def test_progress_is_reported_at_most_ten_times(tmp_path, monkeypatch):
  monkeypatch.setattr("diffdistill.data.packed.CHUNK", 16)
  _, said = _packed(Digits(split="train"), tmp_path / "{split}.npz")
  train = [line for line in said if line.startswith("train")]
  assert len(train) == 10
  assert train[-1] == "train: 1,497 of 1,497 images"


def test_resized_images_are_rounded_and_this_is_reported(folder, tmp_path):
  source = Folder(path=folder, split="train", image_size=4)
  lines, _ = _packed(source, tmp_path / "{split}.npz")
  assert all(line.endswith(", resized and rounded to bytes") for line in lines)
  everything = np.arange(len(source))
  resized = source.take(everything)["image"]
  taken = Npz(path=str(tmp_path / "train.npz"), split="train").take(everything)
  assert (resized != np.rint(resized)).any()
  np.testing.assert_array_equal(taken["image"], np.rint(resized))


def test_a_single_split_is_packed_to_one_file(npz, tmp_path):
  path = npz(image=IMAGES[..., None], label=LABELS)
  source = Npz(path=path, split="train")
  (line,), _ = _packed(source, tmp_path / "one.npz")
  assert line.startswith(f"{tmp_path}/one.npz: 7 train images of 4x6x1 in 3")
  (_,), _ = _packed(source, tmp_path / "{split}.npz")
  assert (tmp_path / "one.npz").read_bytes() == (
    tmp_path / "train.npz"
  ).read_bytes()


def test_a_refused_pack_leaves_no_files(folder, tmp_path):
  source = Folder(path=folder, split="train", image_size=6)
  before = sorted(tmp_path.rglob("*"))
  for out, words in (
    ("set.npy", "out is .*set.npy'; pass a name that ends in .npz"),
    ("set.npz", r"there is a test split too; .* such as .*set_\{split\}.npz"),
  ):
    with pytest.raises(ValueError, match=words) as refusal:
      _packed(source, tmp_path / out)
    assert "\n" not in str(refusal.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_image_leaves_the_old_file(folder, tmp_path):
  source = Folder(path=folder, split="train", image_size=6)
  _packed(source, tmp_path / "{split}.npz")
  old = (tmp_path / "train.npz").read_bytes()
  (tmp_path / "png" / "train" / "emu" / "0.png").write_bytes(b"broken")
  broken = Folder(path=folder, split="train", image_size=6)
  with pytest.raises(ValueError, match=r"0\.png cannot be decoded"):
    _packed(broken, tmp_path / "{split}.npz")
  assert (tmp_path / "train.npz").read_bytes() == old
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "png",
    "test.npz",
    "train.npz",
  ]


def test_a_full_disk_is_refused_in_one_line(folder, tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("numpy.lib.format.write_array", full)
  source = Folder(path=folder, split="train", image_size=6)
  with pytest.raises(
    ValueError, match=r"disk is full: .*train\.npz needs 1.6 kB"
  ):
    _packed(source, tmp_path / "{split}.npz")
  assert [p.name for p in tmp_path.iterdir()] == ["png"]
