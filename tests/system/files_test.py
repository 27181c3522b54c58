import errno
import json
import math
import os
import pathlib
import re

import pytest
from etils import epath

from diffdistill.system.files import (
  matching,
  read_json,
  whole_folder,
  write_atomically,
  write_json,
)


@pytest.mark.parametrize("data", ["text with an é\n", b"\x00\xff bytes", ""])
def test_a_write_is_complete_and_leaves_no_other_file(tmp_path, data):
  path = tmp_path / "a" / "b" / "file.json"
  write_atomically(path, data)
  read = path.read_bytes() if isinstance(data, bytes) else path.read_text()
  assert read == data
  assert list(path.parent.iterdir()) == [path]


def test_a_write_replaces_the_old_file(tmp_path):
  path = epath.Path(tmp_path) / "file.json"
  write_atomically(path, "a longer text than the next\n")
  write_atomically(str(path), "short\n")
  assert path.read_text() == "short\n"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "file.json"
  write_atomically(path, "old\n")

  def fill_the_disk(self, data, *args, **kwargs):
    with pathlib.Path(self).open("wb") as file:
      file.write(data[:2])
    raise OSError("no space left on device")

  monkeypatch.setattr(type(epath.Path(path)), "write_bytes", fill_the_disk)
  with pytest.raises(OSError, match="no space"):
    write_atomically(path, "new\n")
  assert path.read_text() == "old\n"
  # Writing again must replace the unfinished file.
  monkeypatch.undo()
  write_atomically(path, "new\n")
  assert path.read_text() == "new\n"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_only_when_it_is_whole(tmp_path, there):
  folder = epath.Path(tmp_path) / "model"
  if there:
    folder.mkdir()
  # Write the unfinished folder that a killed process leaves.
  write_atomically(folder.with_name(".model.partial") / "old", "half")
  with whole_folder(folder) as new:
    write_atomically(new / "a" / "weights", "all")
    assert not (folder / "a").exists()
  assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == [
    *("model", "model/a", "model/a/weights"),
  ]


def test_a_folder_can_be_written_through_a_link_to_an_empty_folder(tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "model")
  with whole_folder(epath.Path(tmp_path) / "link") as new:
    write_atomically(new / "weights", "all")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "model" / "weights").read_text() == "all"
  assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_folder_leaves_nothing_and_is_named(tmp_path):
  folder = epath.Path(tmp_path) / "model"

  def fill(place):
    write_atomically(place / "weights", "half")
    raise OSError(errno.ENOSPC, "No space", str(place / "card"))

  with (
    pytest.raises(OSError, match=r"No space") as raised,
    whole_folder(folder) as new,
  ):
    fill(new)
  assert raised.value.filename == str(folder / "card")
  assert list(tmp_path.iterdir()) == []


FIELDS = {"name": "Käfer", "steps": [1, 2], "loss": 0.1, "of": {"a": None}}


def test_written_json_is_read_again(tmp_path):
  path = tmp_path / "deep" / "file.json"
  write_json(path, FIELDS)
  assert read_json(path) == FIELDS
  assert json.loads(path.read_text()).keys() == {*FIELDS, "digest"}


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
  path = tmp_path / "file.json"
  write_json(path, {"loss": [math.nan, math.inf], "of": {"a": -math.inf}})
  assert read_json(path) == {"loss": [None, None], "of": {"a": None}}


def test_every_flipped_bit_of_json_is_detected_or_has_no_effect(tmp_path):
  path = tmp_path / "file.json"
  write_json(path, FIELDS)
  written, found = path.read_bytes(), 0
  for place in range(8 * len(written)):
    flipped = bytearray(written)
    flipped[place // 8] ^= 1 << place % 8
    path.write_bytes(flipped)
    try:
      read = read_json(path)
    except ValueError as error:
      assert re.fullmatch(".* is damaged: .*", str(error))  # noqa: PT017
      found += 1
    else:
      assert read == FIELDS
  assert found > 7 * len(written)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"a": 1}'])
def test_json_of_another_form_is_refused_in_one_line(tmp_path, text):
  path = tmp_path / "file.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"file\.json is damaged: "):
    read_json(path)


def test_the_field_that_holds_the_digest_is_reserved(tmp_path):
  with pytest.raises(ValueError, match="reserved; rename it"):
    write_json(tmp_path / "file.json", {"digest": 1})


def test_a_write_to_a_full_disk_leaves_nothing_and_is_named(small_disk):
  kept, path = small_disk / "kept.png", small_disk / "new" / "large.png"
  write_atomically(kept, b"old")
  for target in (path, kept):
    with pytest.raises(OSError, match="No space left") as error:
      write_atomically(target, bytes(1_000_000))
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(target)
  assert [p.name for p in small_disk.rglob("*") if p.is_file()] == ["kept.png"]
  assert kept.read_bytes() == b"old"
  write_atomically(path, b"small")
  assert path.read_bytes() == b"small"


def test_a_disk_that_cannot_be_written_is_named(read_only_disk):
  path = read_only_disk / "file.json"
  with pytest.raises(OSError, match="Read-only file system") as error:
    write_atomically(path, b"new")
  assert error.value.filename == str(path)


def test_brackets_in_the_name_of_a_folder_are_no_glob_pattern(tmp_path):
  folder = tmp_path / "lr[1]*"
  assert matching(folder, "*.png") == []
  folder.mkdir()
  for name in ("b.png", "a.png", ".c.png", "d.npz"):
    (folder / name).write_text("")
  assert [path.name for path in matching(folder, "*.png")] == ["a.png", "b.png"]


def test_two_writers_of_a_file_use_separate_unfinished_files(
  tmp_path, monkeypatch
):
  path, real = epath.Path(tmp_path / "lock.json"), os.replace

  def other_first(source, target):
    monkeypatch.setattr(os, "replace", real)
    write_json(path, {"who": "other"}, writer="other")
    assert read_json(path) == {"who": "other"}
    real(source, target)

  monkeypatch.setattr(os, "replace", other_first)
  write_json(path, {"who": "one"}, writer="one")
  assert read_json(path) == {"who": "one"}
  assert [p.name for p in path.parent.iterdir()] == ["lock.json"]
