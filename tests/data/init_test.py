"""Tests the table of sources."""

import dataclasses

from diffdistill.data import SOURCES


def test_every_source_is_a_frozen_dataclass_with_a_split():
  assert list(SOURCES) == ["digits", "idx", "folder", "npz", "tfds"]
  for source in SOURCES.values():
    fields = {field.name: field for field in dataclasses.fields(source)}
    assert "split" in fields
    assert all(field.kw_only for field in fields.values())
    assert source.__dataclass_params__.frozen
    for method in ("check", "take", "image_shape", "num_classes", "__len__"):
      assert hasattr(source, method)
