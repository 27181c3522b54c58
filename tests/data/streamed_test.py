"""Folders of images: labels, geometry, and how damage is reported."""

import numpy as np
import pytest
from PIL import Image as PillowImage

from diffdistill.data.streamed import Folder


def _save(path, size=(10, 8), colour=(10, 20, 30), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  PillowImage.new(mode, size, colour).save(path)
  return path


@pytest.fixture
def folder(tmp_path):
  """Three classes, made in an order that is not theirs."""
  _save(tmp_path / "zebra" / "a.PNG", colour=(255, 0, 0))
  _save(tmp_path / "ant" / "b.png", colour=(0, 255, 0))
  _save(tmp_path / "ant" / "a.webp", colour=(0, 0, 0))
  _save(tmp_path / "Bee" / "a.jpg", colour=(255, 255, 255))
  (tmp_path / "ant" / "notes.txt").write_text("no image")
  (tmp_path / ".cache").mkdir()
  return tmp_path


def _source(path, **fields) -> Folder:
  return Folder(
    **{"path": str(path), "split": "train", "image_size": 4} | fields
  )


def _refused(act, *words: str, error: type[Exception] = ValueError) -> None:
  with pytest.raises(error) as refusal:
    act()
  message = str(refusal.value)
  assert "\n" not in message
  for word in words:
    assert word in message


def test_sorted_folders_are_the_labels(folder):
  source = _source(folder)
  assert source.class_names == ("Bee", "ant", "zebra")
  assert (len(source), source.num_classes) == (4, 3)
  assert source.image_shape == (4, 4, 3)
  taken = source.take(np.array([3, 0, 2, 1]))
  assert taken["label"].dtype == np.int32
  assert taken["label"].tolist() == [2, 0, 1, 1]
  assert taken["image"].dtype == np.float32
  means = taken["image"].mean(axis=(1, 2))
  # Lossy files: a level or two of 255.
  np.testing.assert_allclose(
    means, [[255, 0, 0], [255, 255, 255], [0, 255, 0], [0, 0, 0]], atol=2
  )


def test_taking_nothing(folder):
  taken = _source(folder).take(np.arange(0))
  assert taken["image"].shape == (0, 4, 4, 3)
  assert taken["label"].shape == (0,)


def test_a_folder_per_split(tmp_path):
  _save(tmp_path / "train" / "x" / "a.png")
  _save(tmp_path / "train" / "y" / "a.png")
  _save(tmp_path / "test" / "x" / "a.png")
  assert len(_source(tmp_path)) == 2
  assert len(_source(tmp_path, split="test")) == 1
  # Not a split: then train and test are classes, and hold no image.
  _refused(_source(tmp_path, split="val").check, str(tmp_path), "no image")


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_photographs_are_cropped_and_shrunk(tmp_path, resize):
  # 16 wide, 8 high: white but for its middle square, which is grey.
  picture = np.full((8, 16, 3), 255, np.uint8)
  picture[:, 4:12] = 100
  (tmp_path / "x").mkdir()
  PillowImage.fromarray(picture).save(tmp_path / "x" / "a.png")
  image = _source(tmp_path, resize=resize).take(np.array([0]))["image"]
  np.testing.assert_allclose(image, 100, rtol=1e-6)
  image = _source(tmp_path, resize=resize, crop="none").take(np.array([0]))
  assert image["image"].max() > 200


def test_grey(tmp_path):
  _save(tmp_path / "x" / "a.png", colour=(200, 200, 200))
  _save(tmp_path / "x" / "b.png", colour=50, mode="L")
  image = _source(tmp_path, channels=1).take(np.arange(2))["image"]
  assert image.shape == (2, 4, 4, 1)
  np.testing.assert_allclose(image[:, 0, 0, 0], [200, 50], rtol=1e-6)
  image = _source(tmp_path).take(np.arange(2))["image"]
  np.testing.assert_allclose(image[1], 50, rtol=1e-6)


def test_missing_folder(tmp_path):
  _refused(
    _source(tmp_path / "no").check,
    str(tmp_path / "no"),
    "one folder per class",
    error=FileNotFoundError,
  )


def test_no_class_folder(tmp_path):
  _save(tmp_path / "a.png")
  _refused(_source(tmp_path).check, str(tmp_path), "no class folder", "all/")


def test_empty_class_folder(folder):
  (folder / "cat").mkdir()
  _refused(_source(folder).check, str(folder / "cat"), "remove it")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("kept", [0, 20, 0.6])
def test_a_corrupt_image_is_named(tmp_path, name, kept):
  path = tmp_path / "x" / name
  path.parent.mkdir()
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
  PillowImage.fromarray(noise.astype(np.uint8)).save(path)
  content = path.read_bytes()
  kept = int(kept * len(content)) if kept < 1 else kept
  path.write_bytes(content[:kept])
  source = _source(tmp_path)
  source.check()
  _refused(lambda: source.take(np.array([0])), str(path), "cannot be decoded")


def test_deep_images_are_refused(tmp_path):
  path = tmp_path / "x" / "a.png"
  path.parent.mkdir()
  PillowImage.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
  source = _source(tmp_path)
  _refused(lambda: source.take(np.array([0])), str(path), "8 bits")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"image_size": None}, "image_size is not given"),
    ({"channels": 4}, "channels is 4; pass 3"),
    ({"split": ""}, "split is empty"),
    ({"num_threads": 0}, "num_threads is 0"),
    ({"resize": "cubic"}, "resize is 'cubic'"),
  ],
)
def test_fields_are_refused_at_construction(tmp_path, fields, words):
  _refused(lambda: _source(tmp_path, **fields), words)


def test_a_folder_holds_out_a_test_split_of_the_same_classes(tmp_path):
  flat = Folder(path=str(tmp_path), split="train", image_size=8)
  assert flat.held_out() is None
  for name in ("train/a", "train/b", "test/a"):
    (tmp_path / name).mkdir(parents=True)
    PillowImage.new("L", (8, 8)).save(tmp_path / name / "0.png")
  assert flat.held_out() is None
  (tmp_path / "test/b").mkdir()
  PillowImage.new("L", (8, 8)).save(tmp_path / "test/b/0.png")
  folder = Folder(path=str(tmp_path), split="train", image_size=8)
  assert folder.held_out().split == "test"
