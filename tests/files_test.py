import pathlib

import pytest
from etils import epath

from diffdistill.files import write_atomically


@pytest.mark.parametrize("data", ["text with an é\n", b"\x00\xff bytes", ""])
def test_writes_all_and_leaves_nothing_beside(tmp_path, data):
  path = tmp_path / "a" / "b" / "file.json"
  write_atomically(path, data)
  read = path.read_bytes() if isinstance(data, bytes) else path.read_text()
  assert read == data
  assert list(path.parent.iterdir()) == [path]


def test_replaces_what_was_there(tmp_path):
  path = epath.Path(tmp_path) / "file.json"
  write_atomically(path, "a longer text than the next\n")
  write_atomically(str(path), "short\n")
  assert path.read_text() == "short\n"


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / "file.json"
  write_atomically(path, "old\n")

  def fill_the_disk(self, data, *args, **kwargs):
    pathlib.Path(self).write_bytes(data.encode()[:2])
    raise OSError("no space left on device")

  monkeypatch.setattr(type(epath.Path(path)), "write_text", fill_the_disk)
  with pytest.raises(OSError, match="no space"):
    write_atomically(path, "new\n")
  assert path.read_text() == "old\n"
  # What is left of it does no harm: the next write takes its place.
  monkeypatch.undo()
  write_atomically(path, "new\n")
  assert path.read_text() == "new\n"
  assert list(tmp_path.iterdir()) == [path]
