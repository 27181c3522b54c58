"""Tests that a damaged line of metrics.jsonl is skipped with a warning."""

import contextlib
import errno
import json
import pathlib

import pytest
from etils import epath

from diffdistill.training.records import (
  append_record,
  keep_records,
  read_records,
)

RECORDS = [
  {"round": "teacher", "step": 10, "loss": 0.5, "device_kind": "Käfer"},
  {"round": "halve/004", "step": 20, "loss": None, "seconds": 1e-7},
]


@pytest.fixture
def workdir(tmp_path):
  for record in RECORDS:
    append_record(epath.Path(tmp_path), record)
  return epath.Path(tmp_path)


@pytest.fixture
def file(workdir):
  return pathlib.Path(workdir) / "metrics.jsonl"


def records(workdir):
  return [record for _, record in read_records(workdir).good]


def test_records_are_read_as_they_were_written(workdir, file):
  assert records(workdir) == RECORDS
  assert read_records(workdir).warning == ""
  lines = [json.loads(line) for line in file.read_bytes().splitlines()]
  assert [list(line)[-1] for line in lines] == ["crc", "crc"]


def test_every_flipped_bit_is_found_or_harmless(workdir, file):
  written = file.read_bytes()
  found = 0
  for place in range(8 * len(written)):
    flipped = bytearray(written)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)
    read = read_records(workdir)
    if read.damaged:
      found += 1
      assert all(record in RECORDS for _, record in read.good)
    else:
      assert records(workdir) == RECORDS
  # A few flips of bits do not change the record, such as a flip in a space, or
  # of 1e-7 to 1E-7.
  assert found > 7.8 * len(written)


@pytest.mark.parametrize(
  "line",
  [
    b"{",
    b"3",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"round": "teacher", "step": 1}',
    b'{"round": "teacher", "step": 1, "crc": "00000000"}',
    b'{"round": "teacher", "step": NaN, "crc": 3}',
    b'{"crc": null}',
    b"1" * 10_000,
    b" ",
  ],
)
def test_a_damaged_line_is_skipped_and_named(workdir, file, line):
  before = file.read_bytes()
  file.write_bytes(line + b"\n" + before)
  read = read_records(workdir)
  assert read.warning == f"{file}: line 1 is damaged and skipped"
  assert [record for _, record in read.good] == RECORDS
  said = []
  keep_records(workdir, lambda record: True, said.append)
  assert said == [read.warning]
  assert file.read_bytes() == before


@pytest.mark.parametrize(
  "record", [{"step": 1}, {"round": 1, "step": 1}, {"round": "a", "step": "1"}]
)
def test_a_record_without_its_round_and_step_is_damaged(tmp_path, record):
  append_record(epath.Path(tmp_path), record)
  assert read_records(epath.Path(tmp_path)).damaged == [1]


def test_many_damaged_lines_are_one_warning(workdir, file):
  file.write_bytes(b"x\n" * 9 + file.read_bytes())
  assert read_records(workdir).warning == (
    f"{file}: lines 1, 2, 3, 4, 5 and 4 more are damaged and skipped"
  )


def test_a_workdir_without_records_is_not_damaged(tmp_path):
  read = read_records(epath.Path(tmp_path))
  assert (read.good, read.warning) == ((), "")
  (tmp_path / "metrics.jsonl").write_bytes(b"")
  read = read_records(epath.Path(tmp_path))
  assert (list(read.good), read.warning) == ([], "")


def test_a_folder_in_place_of_metrics_jsonl_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  for act in (
    lambda: read_records(epath.Path(tmp_path)),
    lambda: append_record(epath.Path(tmp_path), RECORDS[0]),
  ):
    with pytest.raises(IsADirectoryError) as error:
      act()
    assert str(error.value.filename) == str(tmp_path / "metrics.jsonl")


def test_a_full_disk_leaves_whole_records_and_names_the_file(small_disk):
  workdir = epath.Path(small_disk)
  record = {**RECORDS[0], "note": "x" * 1000}

  def fill():
    while True:
      append_record(workdir, record)

  with pytest.raises(OSError, match="No space left") as error:
    fill()
  assert error.value.errno == errno.ENOSPC
  assert error.value.filename == str(workdir / "metrics.jsonl")
  read = read_records(workdir)
  written = len(read.good)
  assert written > 10
  assert read.damaged == []
  with contextlib.suppress(OSError):
    append_record(workdir, {**record, "note": "x" * 5000})
  assert len(read_records(workdir).good) == written
  # The run continues as soon as the disk has room again.
  keep_records(workdir, lambda record: False, print)
  append_record(workdir, record)
  assert records(workdir) == [record]
