"""Tests that the record of a run's data is kept, and other data refused."""

import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image as PillowImage

from diffdistill.data.facts import describe, difference
from diffdistill.data.folder import Folder
from diffdistill.data.packed import Npz
from diffdistill.data.record import FILE, Recorded, admit, keep, read


def _fill(root, **counts):
  for name, count in counts.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      PillowImage.new("RGB", (8, 8), (i, i, i)).save(root / name / f"{i}.png")
  return Folder(path=str(root), split="train", image_size=4)


def _npz(path, labels, level=0):
  images = np.full((len(labels), 2, 2, 1), level, np.uint8)
  np.savez(path, image=images, label=np.array(labels))
  return Npz(path=str(path), split="train")


@pytest.fixture
def begun(tmp_path):
  """Returns the workdir of a run on cats and dogs, and its data folder."""
  workdir = epath.Path(tmp_path / "run")
  data = tmp_path / "data"
  source = _fill(data, cat=3, dog=2)
  keep(workdir, admit(source, workdir, begun=False, counted=True).facts)
  return workdir, data


def _again(workdir, source):
  return admit(source, workdir, begun=True, counted=True)


def test_facts_come_back_from_their_file(tmp_path):
  _fill(tmp_path / "data" / "test", cat=1)
  _fill(tmp_path / "data" / "train", cat=3, dog=2)
  source = Folder(path=str(tmp_path / "data"), split="train", image_size=4)
  facts = describe(source)
  assert facts.held_out.num_images == 1
  keep(epath.Path(tmp_path), facts)
  assert read(epath.Path(tmp_path)) == facts
  assert read(epath.Path(tmp_path / "nothing")) is None


def test_data_in_another_place_is_the_same_data(begun, tmp_path):
  workdir, data = begun
  shutil.move(data, tmp_path / "moved")
  moved = Folder(path=str(tmp_path / "moved"), split="train", image_size=4)
  assert _again(workdir, moved).label_counts == (3, 2)


def test_a_renamed_class_is_refused_by_name(begun):
  workdir, data = begun
  (data / "cat").rename(data / "wolf")
  source = Folder(path=str(data), split="train", image_size=4)
  with pytest.raises(ValueError, match="the classes cat are wolf here") as e:
    _again(workdir, source)
  assert str(workdir) in str(e.value)
  assert "\n" not in str(e.value)


def test_new_images_are_refused_by_their_number(begun):
  workdir, data = begun
  with pytest.raises(ValueError, match="number of images is 5 there and 9"):
    _again(workdir, _fill(data, dog=6))


def test_images_that_changed_their_class_are_refused(begun):
  workdir, data = begun
  (data / "cat" / "2.png").rename(data / "dog" / "2.png")
  source = Folder(path=str(data), split="train", image_size=4)
  with pytest.raises(ValueError, match="class cat has 3 images there and 2"):
    _again(workdir, source)


def test_other_files_of_the_same_names_are_refused(begun):
  workdir, data = begun
  PillowImage.effect_noise((90, 90), 9).save(data / "cat" / "0.png")
  source = Folder(path=str(data), split="train", image_size=4)
  with pytest.raises(ValueError, match="the sizes of files differ"):
    _again(workdir, source)


def test_a_held_out_split_that_came_later_is_refused(begun):
  workdir, data = begun
  _fill(data / "test", cat=1)
  source = Folder(path=str(data), split="train", image_size=4)
  with pytest.raises(ValueError, match="held-out splits: none there"):
    _again(workdir, source)


def test_other_pixels_in_memory_are_refused(tmp_path):
  workdir = epath.Path(tmp_path / "run")
  source = _npz(tmp_path / "a.npz", [0, 1])
  keep(workdir, admit(source, workdir, begun=False, counted=True).facts)
  other = _npz(tmp_path / "b.npz", [0, 1], level=1)
  with pytest.raises(ValueError, match="the images and labels differ"):
    _again(workdir, other)


def test_before_a_stage_has_begun_data_may_change(begun):
  workdir, data = begun
  source = _fill(data, dog=6)
  admitted = admit(source, workdir, begun=False, counted=True)
  assert admitted.label_counts == (3, 6)


def test_facts_are_known_without_the_data(begun):
  workdir, data = begun
  source = Folder(path=str(data), split="train", image_size=4)
  shutil.rmtree(data)
  recorded = Recorded(facts=read(workdir), source=source)
  assert (len(recorded), recorded.num_classes) == (5, 2)
  assert recorded.image_shape == (4, 4, 3)
  assert recorded.image_dtype == np.float32
  assert recorded.class_names == ("cat", "dog")
  assert recorded.label_counts == (3, 2)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    recorded.take(np.array([0]))


def test_changed_data_is_refused_when_it_is_read(begun):
  workdir, data = begun
  source = _fill(data, dog=6)
  recorded = Recorded(facts=read(workdir), source=source)
  with pytest.raises(ValueError, match="changed since the run was made: the"):
    recorded.take(np.array([0]))


def test_a_damaged_record_is_refused_with_a_remedy(begun):
  workdir, _ = begun
  (workdir / FILE).write_text("{}")
  with pytest.raises(ValueError, match=r"data\.json is damaged.*remove it"):
    read(workdir)


def test_labels_that_are_slow_to_count_are_counted_once(begun, monkeypatch):
  workdir, data = begun
  known = read(workdir)
  source = Folder(path=str(data), split="train", image_size=4)
  monkeypatch.setattr(Folder, "labels", None)
  assert describe(source, known=known).label_counts == (3, 2)


def test_the_summary_names_everything_in_one_line(tmp_path):
  source = _fill(tmp_path, cat=3, dog=1)
  (tmp_path / "@eaDir").mkdir()
  assert describe(source).summary("1 cpu") == (
    "data on 1 cpu: 4 images of 4x4x3 in 2 classes (cat 3, dog 1); left out: 1"
    " system file or folder (@eaDir)"
  )


def test_the_summary_says_what_the_held_out_split_lacks(tmp_path):
  _fill(tmp_path / "train", cat=3, dog=1)
  _fill(tmp_path / "val", cat=1)
  source = Folder(path=str(tmp_path), split="train", image_size=4)
  assert "held out: 1 image, none of dog" in describe(source).summary("1 cpu")


@pytest.mark.parametrize(
  ("labels", "said"),
  [
    ([0, 1], "held out: 2 images, none of 2; left"),
    (
      [0, 1, 2, 3, 5, 5],
      "held out: 6 images, 3 of them of classes without training images"
      " (3, 5); left",
    ),
    ([0, 1, 2], "held out: 3 images; left"),
  ],
)
def test_the_summary_compares_the_classes_of_both_splits(
  labels, said, tmp_path
):
  _npz(tmp_path / "test.npz", labels)
  _npz(tmp_path / "train.npz", [0, 1, 2])
  source = Npz(path=str(tmp_path / "{split}.npz"), split="train")
  assert said in describe(source).summary("1 cpu")


def test_the_summary_is_one_line_for_any_class_names(tmp_path):
  source = _fill(tmp_path, **{"new\nline": 1, "é '\x1b": 1})
  line = describe(source).summary("1 cpu")
  assert line.isprintable()
  assert "in 2 classes (new\\nline 1, é '\\x1b 1)" in line


def test_classes_without_images_are_named(tmp_path):
  facts = describe(_npz(tmp_path / "a.npz", [1, 2, 2]))
  assert facts.empty_classes == ("0",)
  line = facts.summary("1 cpu")
  assert "in 3 classes (0: 0, 1: 1, 2: 2)" in line
  assert "classes without images: 0; they are not learned" in line


def test_many_classes_are_abbreviated(tmp_path):
  facts = describe(_npz(tmp_path / "a.npz", np.arange(1000)))
  line = facts.summary("1 cpu")
  assert "11: 1, ... (1,000 in all)" in line
  assert len(line) < 300


def test_the_same_facts_have_no_difference(tmp_path):
  facts = describe(_npz(tmp_path / "a.npz", [0, 1]))
  assert not difference(facts, facts)
