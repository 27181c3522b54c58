"""Stores files of torch.save, in both formats, in golden_tensors.json.

Run `python tests/interop/make_golden_tensors.py` once where torch is installed.
The test makes the same tensors with numpy alone.
"""

import base64
import io
import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_tensors.json")


def arrays():
  """Returns the tensors of the files, as numpy arrays."""
  base = np.arange(24, dtype=np.float32) / 7
  half = base[:6].astype(np.float16)
  # Clear the lower 16 bits, so that conversion to bfloat16 is exact.
  bits = base[:6].view(np.uint32) & 0xFFFF0000
  return {
    "whole": base.reshape(2, 3, 4),
    "view": base[3:17:2],
    "transposed": base.reshape(4, 6).T,
    "half": half.astype(np.float32),
    "bfloat16": bits.view(np.float32),
    "double": base[:2],
    "long": np.array([3, -1], np.float32),
    "byte": np.array([3, 255], np.float32),
    "bool": np.array([1, 0], np.float32),
    "number": np.array(3.5, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "parameter": base[:4].reshape(2, 2),
  }


def written():
  """Returns the bytes of a file in each format of torch.save."""
  import torch

  base = torch.arange(24, dtype=torch.float32) / 7
  known = {k: torch.from_numpy(np.array(v)) for k, v in arrays().items()}
  tensors = {
    **known,
    # The next three tensors are views of one storage.
    "whole": base.view(2, 3, 4),
    "view": base[3:17:2],
    "transposed": base.view(4, 6).t(),
    "half": known["half"].half(),
    "bfloat16": known["bfloat16"].bfloat16(),
    "double": known["double"].double(),
    "long": known["long"].long(),
    "byte": known["byte"].byte(),
    "bool": known["bool"].bool(),
    "parameter": torch.nn.Parameter(known["parameter"]),
  }
  files = {}
  for name, new in (("zip", True), ("legacy", False)):
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=new)
    files[name] = file.getvalue()
  return files


def main():
  files = {k: base64.b64encode(v).decode() for k, v in written().items()}
  GOLDEN.write_text(json.dumps(files, indent=1) + "\n")


if __name__ == "__main__":
  main()
