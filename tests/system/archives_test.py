"""Tests that archives which unpack to very many bytes are refused unread."""

import zipfile

import numpy as np
import pytest
from etils import epath

from diffdistill.judging import references
from diffdistill.system import archives
from diffdistill.system.archives import check_unpacked_size


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path / "a.npz")


def test_a_small_archive_that_unpacks_to_many_bytes_is_refused(
  path, monkeypatch
):
  monkeypatch.setattr(archives, "FREE", 1 << 16)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("mu.npy", bytes(1 << 24))
  with pytest.raises(ValueError, match="unpacks to 16,777,216") as refusal:
    check_unpacked_size(path)
  assert "\n" not in str(refusal.value)
  # A reader of archives must refuse this archive too.
  with pytest.raises(ValueError, match="unpacks to 16,777,216"):
    references._read(path)


def test_usual_archives_are_not_refused(path, monkeypatch):
  monkeypatch.setattr(archives, "FREE", 0)
  drawing = np.zeros((64, 32, 32, 1), np.uint8)
  drawing[:, 8:24:3, 8:24] = np.arange(64, dtype=np.uint8)[:, None, None, None]
  np.savez_compressed(path, image=drawing)
  check_unpacked_size(path)
  np.savez(path, image=np.zeros(1 << 20, np.uint8))
  check_unpacked_size(path)


def test_a_file_that_is_no_archive_is_left_to_its_reader(path):
  for data in (b"", b"PK\x03\x04", b"text", bytes(99)):
    path.write_bytes(data)
    check_unpacked_size(path)
