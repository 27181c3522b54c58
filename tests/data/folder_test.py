"""Tests folders of images: their classes, labels, and what is left out."""

import unicodedata

import numpy as np
import pytest
from PIL import Image as PillowImage

from diffdistill.data.folder import Folder


def _save(path, size=(10, 8), colour=(10, 20, 30), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  PillowImage.new(mode, size, colour).save(path)
  return path


@pytest.fixture
def folder(tmp_path):
  """Makes three class folders, not in the order of their names."""
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
  # The tolerance is for JPEG and other lossy formats.
  np.testing.assert_allclose(
    means, [[255, 0, 0], [255, 255, 255], [0, 255, 0], [0, 0, 0]], atol=2
  )


def test_taking_no_images_gives_empty_arrays(folder):
  taken = _source(folder).take(np.arange(0))
  assert taken["image"].shape == (0, 4, 4, 3)
  assert taken["label"].shape == (0,)


def test_a_split_may_have_its_own_folder(tmp_path):
  _save(tmp_path / "train" / "x" / "a.png")
  _save(tmp_path / "train" / "y" / "a.png")
  _save(tmp_path / "test" / "x" / "a.png")
  assert len(_source(tmp_path)) == 2
  assert len(_source(tmp_path, split="test")) == 1
  _refused(
    _source(tmp_path, split="val").check,
    str(tmp_path),
    "no folder val; it has test, train",
  )


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_photographs_are_cropped_and_shrunk(tmp_path, resize):
  # The picture is 16 pixels wide and 8 high; it is white with a grey square in
  # the middle.
  picture = np.full((8, 16, 3), 255, np.uint8)
  picture[:, 4:12] = 100
  (tmp_path / "x").mkdir()
  PillowImage.fromarray(picture).save(tmp_path / "x" / "a.png")
  image = _source(tmp_path, resize=resize).take(np.array([0]))["image"]
  np.testing.assert_allclose(image, 100, rtol=1e-6)
  image = _source(tmp_path, resize=resize, crop="none").take(np.array([0]))
  assert image["image"].max() > 200


def test_images_can_be_read_as_grey(tmp_path):
  _save(tmp_path / "x" / "a.png", colour=(200, 200, 200))
  _save(tmp_path / "x" / "b.png", colour=50, mode="L")
  image = _source(tmp_path, channels=1).take(np.arange(2))["image"]
  assert image.shape == (2, 4, 4, 1)
  np.testing.assert_allclose(image[:, 0, 0, 0], [200, 50], rtol=1e-6)
  image = _source(tmp_path).take(np.arange(2))["image"]
  np.testing.assert_allclose(image[1], 50, rtol=1e-6)


def test_a_missing_folder_is_refused(tmp_path):
  _refused(
    _source(tmp_path / "no").check,
    str(tmp_path / "no"),
    "pass a folder of pictures",
    error=FileNotFoundError,
  )


def test_a_folder_without_images_is_refused(tmp_path):
  (tmp_path / "notes.txt").write_text("no image")
  _refused(_source(tmp_path).check, str(tmp_path), "no image", "class folder")


def test_images_without_class_folders_are_one_class(tmp_path):
  for i in range(3):
    _save(tmp_path / f"{i}.png", colour=(i, i, i))
  (tmp_path / "notes.txt").write_text("no image")
  source = _source(tmp_path)
  source.check()
  assert (source.class_names, source.label_counts) == (("all",), (3,))
  assert source.left_out == ("1 other file beside the images (notes.txt)",)
  taken = source.take(np.array([2, 0]))
  assert taken["image"].max(axis=(1, 2, 3)).tolist() == [2, 0]
  (tmp_path / "3.png").touch()
  _refused(_source(tmp_path).check, str(tmp_path / "3.png"), "0 bytes")


def test_pictures_are_measured_without_decoding(tmp_path):
  sizes = ((40, 30), (20, 50), (10, 10))
  for i, size in enumerate(sizes):
    _save(tmp_path / "a" / f"{i}.png", size)
  _save(tmp_path / "b" / "0.png", (7, 9), 100, mode="L")
  measured = _source(tmp_path).measured(64)
  assert measured == [(30, False), (20, False), (10, False), (7, True)]
  assert _source(tmp_path).measured(2) == [(30, False), (7, True)]
  (tmp_path / "a" / "0.png").write_bytes(b"no picture")
  _refused(lambda: _source(tmp_path).measured(1), "a/0.png cannot be decoded")


def test_an_empty_class_folder_is_refused(folder):
  (folder / "cat").mkdir()
  _refused(_source(folder).check, str(folder / "cat"), "remove it")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("kept", [20, 0.6])
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


def test_an_empty_file_is_refused_before_training(folder):
  (folder / "ant" / "c.png").touch()
  _refused(_source(folder).check, str(folder / "ant" / "c.png"), "0 bytes")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"image_size": None}, "image_size is not given"),
    ({"channels": 4}, "channels is 4; pass 3"),
    ({"split": ""}, "split is empty"),
    ({"num_threads": 0}, "num_threads is 0"),
    ({"resize": "cubic"}, "resize is 'cubic'"),
    ({"background": "whit"}, "background is 'whit', which is no colour"),
    ({"only": ("a", "a")}, "name each class once"),
  ],
)
def test_wrong_fields_are_refused_at_construction(tmp_path, fields, words):
  _refused(lambda: _source(tmp_path, **fields), words)


def test_a_path_that_is_a_file_is_refused(tmp_path):
  path = _save(tmp_path / "a.png")
  _refused(_source(path).check, str(path), "is a file")


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_the_held_out_split_has_several_names(tmp_path, name):
  for place in ("train/a", "train/b", f"{name}/a", f"{name}/b"):
    _save(tmp_path / place / "0.png")
  held_out = _source(tmp_path).held_out()
  assert held_out.split == name
  assert held_out.label_counts == (1, 1)


def test_without_a_folder_there_is_no_held_out_split(tmp_path):
  _save(tmp_path / "a" / "0.png")
  assert _source(tmp_path).held_out() is None


def test_labels_of_the_held_out_split_are_those_of_training(tmp_path):
  for place in ("train/a", "train/b", "train/c", "test/b", "test/z"):
    _save(tmp_path / place / "0.png")
  held_out = _source(tmp_path).held_out()
  held_out.check()
  assert held_out.label_counts == (0, 1, 0)
  assert held_out.take(np.array([0]))["label"].tolist() == [1]
  assert held_out.left_out == ("1 class that is not read (z)",)


def test_a_held_out_split_of_other_classes_is_refused(tmp_path):
  for place in ("train/a", "test/z"):
    _save(tmp_path / place / "0.png")
  _refused(_source(tmp_path).held_out().check, "classes z, but none of a")


def test_class_names_in_two_unicode_forms_are_the_same(tmp_path):
  _save(tmp_path / "train" / unicodedata.normalize("NFC", "Käfer") / "0.png")
  _save(tmp_path / "test" / unicodedata.normalize("NFD", "Käfer") / "0.png")
  source = _source(tmp_path)
  assert source.class_names == (unicodedata.normalize("NFC", "Käfer"),)
  assert source.held_out().take(np.array([0]))["label"].tolist() == [0]
  _save(tmp_path / "train" / unicodedata.normalize("NFD", "Käfer") / "0.png")
  _refused(_source(tmp_path).check, "two Unicode forms")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
  for place in ("bus", "car", name):
    _save(tmp_path / place / "0.png")
  source = _source(tmp_path)
  assert source.class_names == tuple(sorted(("bus", "car", name)))
  assert source.held_out() is None


def test_split_folders_of_loose_images_are_one_class(tmp_path):
  _save(tmp_path / "train" / "0.png")
  _save(tmp_path / "test" / "0.png")
  _save(tmp_path / "test" / "1.png")
  source = _source(tmp_path)
  assert (len(source), source.class_names) == (1, ("all",))
  assert len(source.held_out()) == 2
  assert source.held_out().labels().tolist() == [0, 0]


SYSTEM_FOLDERS = [
  "@eaDir",
  "lost+found",
  "__MACOSX",
  "$RECYCLE.BIN",
  "System Volume Information",
  "#recycle",
  ".ipynb_checkpoints",
]


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_of_the_system_are_no_classes(tmp_path, name):
  for place in ("cat", "dog", name, f"cat/{name}"):
    _save(tmp_path / place / "0.png")
  (tmp_path / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
  source = _source(tmp_path)
  assert source.class_names == ("cat", "dog")
  assert source.label_counts == (1, 1)
  assert f"1 system file or folder ({name})" in source.left_out
  assert any("2 system files or" in phrase for phrase in source.left_out)


def test_files_that_are_not_read_are_named(tmp_path):
  for place in ("a.png", "cat/a.png", "cat/old.png/b.png", "cat/b.gif"):
    _save(tmp_path / place)
  for place in ("notes.txt", "cat/a.heic", "cat/a.json"):
    (tmp_path / place).write_text("something")
  source = _source(tmp_path)
  assert len(source) == 2
  assert source.left_out == (
    "1 image beside the class folders (a.png)",
    "1 other file beside the class folders (notes.txt)",
    "1 folder in a class folder (cat/old.png), with 1 image",
    "1 picture of a format that is not read (cat/a.heic)",
    "1 other file in a class (cat/a.json)",
    "of 1 .gif file every picture after the first",
  )


def test_links_that_lead_upwards_are_not_followed(tmp_path):
  for name in ("cat", "dog"):
    _save(tmp_path / name / "0.png")
    (tmp_path / name / "up").symlink_to("..")
    (tmp_path / name / "here").symlink_to(".")
  _save(tmp_path / "cat" / "old" / "1.png")
  (tmp_path / "cat" / "old" / "up").symlink_to("../..")
  (left,) = _source(tmp_path).left_out
  assert left.startswith("5 folders in class folders (")
  assert left.endswith(", with 1 image")


def test_a_class_whose_images_lie_deeper_is_refused(tmp_path):
  _save(tmp_path / "animals" / "cat" / "0.png")
  _refused(_source(tmp_path).check, "its folder cat has; move the images up")


def test_a_dead_link_is_refused_before_training(folder):
  link = folder / "ant" / "9.png"
  link.symlink_to("/nowhere/9.png")
  _refused(_source(folder).check, str(link), "does not exist")


def test_the_field_only_chooses_and_orders_classes(folder):
  source = _source(folder, only=("zebra", "Bee"))
  assert source.class_names == ("zebra", "Bee")
  assert source.take(np.arange(2))["label"].tolist() == [0, 1]
  assert "1 class that is not read (ant)" in source.left_out


def test_digests_depend_on_names_and_sizes_and_not_on_the_place(tmp_path):
  for root in ("here", "there"):
    _save(tmp_path / root / "a" / "0.png")
  here, there = (_source(tmp_path / root) for root in ("here", "there"))
  assert here.digests() == there.digests()
  _save(tmp_path / "there" / "a" / "0.png", size=(50, 60))
  larger = _source(tmp_path / "there").digests()
  assert larger["names of files"] == here.digests()["names of files"]
  assert larger["sizes of files"] != here.digests()["sizes of files"]
