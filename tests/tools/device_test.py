"""The check for a device prints its name, or the reason why there is none."""

import sys
import types

import jax
import pytest

from diffdistill.tools import device


def found(platform, kind, memory=None):
  stats = memory and {"bytes_limit": memory}
  return types.SimpleNamespace(
    platform=platform, device_kind=kind, memory_stats=lambda: stats
  )


H100 = found("gpu", "NVIDIA H100 80GB HBM3", 60 * 2**30)


@pytest.mark.parametrize(
  ("devices", "flags", "name", "said"),
  [
    ([H100], [], "nvidia_h100_80gb_hbm3\n", "60.0 GiB for JAX"),
    ([found("cpu", "cpu")], ["--cpu"], "cpu\n", "run: cpu\n"),
    ([found("cpu", "cpu")], [], "", "JAX finds no GPU or TPU; install its"),
    ([H100, H100], [], "", "JAX finds 2 devices; show it one"),
    ([], [], "", "JAX finds no device (no backend)"),
  ],
)
def test_a_run_needs_exactly_one_accelerator_or_cpu_flag(
  monkeypatch, capsys, devices, flags, name, said
):
  def find():
    if not devices:
      raise RuntimeError("no\nbackend")
    return devices

  monkeypatch.setattr(jax, "devices", find)
  monkeypatch.setattr(sys, "argv", ["device", *flags])
  assert device.main() == (0 if name else 1)
  output = capsys.readouterr()
  assert output.out == name
  assert said in output.err
  assert output.err.count("\n") == 1
