"""Tests that packed files are read as they were written, or refused."""

import zipfile

import numpy as np
import pytest

from diffdistill.data.packed import Npz

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6)).astype(np.uint8)
LABELS = np.array([2, 0, 1, 2, 1, 0, 2], np.uint8)


def test_npz_reads_its_keys_and_split(npz, refused):
  path = npz(x=IMAGES[..., None], y=LABELS.astype(np.int64))
  path = path.replace("set", "{split}")
  for split in ("train", "test"):
    source = Npz(path=path, split=split, image_key="x", label_key="y")
    refused(source, f"{split}.npz does not exist", error=FileNotFoundError)
  np.savez(path.replace("{split}", "test"), x=IMAGES[..., None], y=LABELS)
  source = Npz(path=path, split="test", image_key="x", label_key="y")
  assert (len(source), source.num_classes) == (7, 3)
  assert source.image_shape == (4, 6, 1)
  taken = source.take(np.array([6, 1]))
  np.testing.assert_array_equal(taken["image"], IMAGES[[6, 1]][..., None])
  assert taken["label"].dtype == np.int32
  assert taken["label"].tolist() == [2, 0]


@pytest.mark.parametrize(
  ("arrays", "words"),
  [
    (
      {"image": IMAGES[..., None]},
      ("holds image but no array label", "label_key"),
    ),
    (
      {"image": IMAGES, "label": LABELS},
      ("uint8 of shape (7, 4, 6)", "(n, h, w, c)"),
    ),
    (
      {"image": IMAGES[..., None] / 255, "label": LABELS},
      ("float64 of shape (7, 4, 6, 1)", "store uint8"),
    ),
    (
      {"image": IMAGES[..., None], "label": LABELS[:6]},
      ("label", "(6,)", "(7,)"),
    ),
    (
      {"image": IMAGES[..., None], "label": LABELS * 0.5},
      ("label", "float64", "store integers"),
    ),
    (
      {"image": IMAGES[..., None], "label": LABELS.astype(np.int32) - 1},
      ("holds -1", "from 0"),
    ),
    (
      # The largest label is too large: a network would need a row for each
      # label up to it.
      {
        "image": IMAGES[..., None],
        "label": LABELS.astype(np.int64) + 2**31 - 4,
      },
      ("holds 2147483646", "7 images from 0, to at most 99999"),
    ),
    (
      {"image": IMAGES[..., None], "label": LABELS.astype(object)},
      ("plain arrays", "np.savez"),
    ),
  ],
)
def test_npz_refuses_wrong_arrays(npz, arrays, words, refused):
  path = npz(**arrays)
  refused(Npz(path=path, split="train"), path, *words)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\3\4 broken"])
def test_npz_refuses_other_files(tmp_path, content, refused):
  path = tmp_path / "set.npz"
  path.write_bytes(content)
  refused(Npz(path=str(path), split="train"), str(path), "np.savez")


@pytest.mark.parametrize(
  ("offset", "value"), [(8, 1), (10, 99)], ids=["encrypted", "of no method"]
)
def test_npz_refuses_a_damaged_archive(npz, offset, value, refused):
  path = npz(image=IMAGES[..., None], label=LABELS)
  with open(path, "r+b") as file:
    file.seek(file.read().index(b"PK\1\2") + offset)
    file.write(bytes([value]))
  refused(Npz(path=path, split="train"), path, "plain arrays")


def test_npz_refuses_more_than_memory_holds(tmp_path, refused):
  path = tmp_path / "set.npz"
  shape = (7, 4, 6, 10**15)
  header = {"descr": "|u1", "fortran_order": False, "shape": shape}
  with (
    zipfile.ZipFile(path, "w") as archive,
    archive.open("image.npy", "w") as member,
  ):
    np.lib.format.write_array_header_1_0(member, header)
  refused(Npz(path=str(path), split="train"), "more memory than there is")


def test_npz_refuses_members_that_are_no_arrays(tmp_path, refused):
  path = tmp_path / "set.npz"
  with zipfile.ZipFile(path, "w") as archive:
    for name in ("image", "label"):
      archive.writestr(name, b"text")
  refused(Npz(path=str(path), split="train"), "no array image")


def test_npz_refuses_a_folder_and_an_empty_set(tmp_path, npz, refused):
  refused(
    Npz(path=str(tmp_path), split="train"), "is a folder", "kind='folder'"
  )
  path = npz(image=IMAGES[:0, ..., None], label=LABELS[:0])
  refused(Npz(path=path, split="train"), path, "holds no images")


def test_npz_refuses_an_npy_file(tmp_path, refused):
  path = tmp_path / "set.npy"
  np.save(path, IMAGES)
  refused(Npz(path=str(path), split="train"), str(path), "no named array")


def test_a_held_out_split_needs_a_path_for_both_splits(tmp_path):
  assert Npz(path=str(tmp_path / "all.npz"), split="train").held_out() is None
  pair = Npz(path=str(tmp_path / "{split}.npz"), split="train")
  assert pair.held_out().split == "test"


def test_declared_facts_are_known_without_the_file(tmp_path, refused):
  source = Npz(
    path=str(tmp_path / "no.npz"),
    split="train",
    image_size=4,
    channels=1,
    classes=3,
  )
  assert source.image_shape == (4, 4, 1)
  assert source.image_dtype == np.uint8
  assert source.num_classes == 3
  refused(source, "does not exist", error=FileNotFoundError)


def test_declared_facts_are_compared_with_the_file(npz, refused):
  path = npz(image=IMAGES[:, :, :4, None], label=LABELS)
  # The file has fewer than 5 classes, because a split may lack the last
  # classes.
  source = Npz(path=path, split="train", image_size=4, channels=1, classes=5)
  source.check()
  assert (source.num_classes, source.image_shape) == (5, (4, 4, 1))
  np.testing.assert_array_equal(
    source.take(np.array([2]))["image"], IMAGES[[2], :, :4, None], strict=True
  )
  for fields, words in (
    ({"classes": 2}, ("classes is 2", "go to 2", "pass 3 or more")),
    ({"image_size": 8}, ("shape (4, 4, 1), not (8, 8, 1)", "resize them")),
    ({"channels": 3}, ("shape (4, 4, 1), not (4, 4, 3)", "channels")),
  ):
    given = {"image_size": 4, "channels": 1, "classes": 3, **fields}
    refused(Npz(path=path, split="train", **given), path, *words)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"classes": 0}, "classes is 0; pass 1 or more"),
    ({"channels": 0, "image_size": 4}, "channels is 0; pass 1 or more"),
    ({"channels": 3}, "channels is 3, but image_size is not given"),
    ({"split": "val"}, "split is 'val'"),
  ],
)
def test_wrong_fields_are_refused_at_construction(fields, words):
  with pytest.raises(ValueError, match=words):
    Npz(**{"path": "x.npz", "split": "train", **fields})
