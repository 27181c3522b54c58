"""Tests that a file of arrays is read as it was written, or refused."""

import errno

import numpy as np
import pytest
from etils import epath

from diffdistill.data import shards
from diffdistill.system import files

ARRAYS = {
  "image": np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1),
  # The array has the name of an argument of np.savez.
  "file": np.linspace(-1, 1, 6).astype(np.float16),
  "checksum": np.array(7, np.uint32),
}


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path / "00001.npz")


def equal(one, other):
  assert list(one) == list(other)
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_a_written_shard_is_read_again(path):
  shards.write_shard(path, ARRAYS)
  equal(shards.read_shard(path, ARRAYS), ARRAYS)
  shards.check_end(path)
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  # Each write must give the same bytes, and NumPy must read the archive.
  first = path.read_bytes()
  shards.write_shard(path, ARRAYS)
  assert path.read_bytes() == first
  with np.load(path, allow_pickle=False) as archive:
    equal(dict(archive), ARRAYS)


def test_a_file_cut_anywhere_is_refused(path):
  shards.write_shard(path, ARRAYS)
  whole = path.read_bytes()
  for length in range(0, len(whole), 7):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"00001\.npz is cut short or dam"):
      shards.check_end(path)
    with pytest.raises(ValueError, match=r"00001\.npz is cut short or dam"):
      shards.read_shard(path, ARRAYS)


def test_any_flipped_byte_is_refused_or_has_no_effect(path):
  shards.write_shard(path, ARRAYS)
  whole, refused, others = path.read_bytes(), 0, 0
  line = f"{path} is cut short or damaged; remove it and it is made again"
  for place in range(len(whole)):
    path.write_bytes(
      whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    )
    try:
      equal(shards.read_shard(path, ARRAYS), ARRAYS)
    except ValueError as error:
      refused += line == str(error)
      others += line != str(error)
  assert not others
  # The changed bytes that are not noticed lie in the dates, versions and
  # attributes of the archive, and have no effect.
  assert refused > 0.7 * len(whole)


@pytest.mark.parametrize(
  "other",
  [
    {**ARRAYS, "more": np.zeros(1)},
    {name: ARRAYS[name] for name in ("image", "file")},
    {**ARRAYS, "file": np.zeros(6, np.float32)},
    {**ARRAYS, "file": np.zeros(5, np.float16)},
  ],
)
def test_other_arrays_are_refused(path, other):
  shards.write_shard(path, other)
  with pytest.raises(ValueError, match="is cut short or damaged"):
    shards.read_shard(path, ARRAYS)


def test_a_missing_shard_raises_file_not_found(path):
  with pytest.raises(FileNotFoundError):
    shards.read_shard(path, ARRAYS)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_the_old_file(path, monkeypatch, code):
  earlier = path.with_name("00000.npz")
  shards.write_shard(earlier, ARRAYS)
  size = len(earlier.read_bytes())

  def fail(path, data):
    path.with_name(f".{path.name}.partial").write_bytes(data[:10])
    raise OSError(code, "no")

  monkeypatch.setattr(shards, "write_atomically", fail)
  kind = OSError if code == errno.EIO else ValueError
  with pytest.raises(kind) as refusal:
    shards.write_shard(path, ARRAYS)
  assert [p.name for p in path.parent.iterdir()] == ["00000.npz"]
  equal(shards.read_shard(earlier, ARRAYS), ARRAYS)
  if kind is ValueError:
    assert str(refusal.value) == (
      f"the disk is full: {path} needs {size} bytes; free as much and run the"
      " command again, which keeps the finished shards"
    )


def test_a_partial_file_of_a_killed_write_is_removed(path, monkeypatch):
  """Tests that `remove_partial` removes what a killed write leaves."""

  def killed(self, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(type(path), "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    files.write_atomically(path, b"half")
  assert len(list(path.parent.iterdir())) == 1
  shards.remove_partial(path.parent)
  assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
  ("num_bytes", "said"),
  [
    (999, "999 bytes"),
    (1000, "1.0 kB"),
    (2_560_000, "2.6 MB"),
    (9_900_000_000, "9.9 GB"),
  ],
)
def test_numbers_of_bytes_are_readable(num_bytes, said):
  assert shards.readable(num_bytes) == said
