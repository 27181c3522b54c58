"""Tests that JSON files of other programs are read or refused."""

import pytest
from etils import epath

from diffdistill.interop import foreign_json
from diffdistill.interop.foreign_json import read_foreign_json


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"[" * 100_000, "too deep|no JSON"),
    (b'{"a":' * 100_000, "too deep|no JSON"),
    (b"[1]", "holds no fields"),
    (b"{", "is no JSON"),
    (b"\xff\xfe\xff", "is no JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON"),
    (b" " * 2000, "has 2,000 bytes"),
  ],
)
def test_files_that_hold_no_json_object_are_refused_in_one_line(
  data, message, tmp_path, monkeypatch
):
  if data.isspace():
    monkeypatch.setattr(foreign_json, "MAX_SIZE", 1999)
  path = epath.Path(tmp_path / "config.json")
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as refusal:
    read_foreign_json(path, "fetch it again")
  assert str(refusal.value).startswith(str(path))
  assert str(refusal.value).endswith("; fetch it again")
  assert "\n" not in str(refusal.value)


def test_a_json_object_is_read_as_a_dict(tmp_path):
  path = epath.Path(tmp_path / "config.json")
  path.write_text('{"a": [1, {"b": null}]}')
  assert read_foreign_json(path, "") == {"a": [1, {"b": None}]}
