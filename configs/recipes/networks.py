"""The published architectures of denoisers."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields


def ddpm_network(
  multipliers: tuple[int, ...],
  *,
  dropout: float,
  remat: str = "none",
  dtype: Any = "float32",
) -> Fields:
  """The U-Net of Ho et al. 2020, as in [DS code] and [CFD code]."""
  return {
    "kind": "unet",
    "style": "ddpm",
    "channels": 128,
    "multipliers": multipliers,
    "num_blocks": 2,
    "attention": (16,),
    "num_heads": 1,
    "embed_dim": 512,
    "dropout": dropout,
    "remat": remat,
    "dtype": dtype,
  }


def film_network(channels: int, multipliers: tuple[int, ...]) -> Fields:
  """The U-Net of Salimans & Ho 2022 for ImageNet and LSUN [PD code]."""
  return {
    "kind": "unet",
    "style": "film",
    "channels": channels,
    "multipliers": multipliers,
    "num_blocks": 3,
    "attention": (8, 16, 32),
    "head_dim": 64,
    "embed_dim": 768,
    "dropout": 0.1,  # for the teacher; students are trained without dropout
    "remat": "all",
    "dtype": "bfloat16",  # [ours]; on TPUs their code multiplies in it too
  }


def small_network(channels: int, *, patch: int) -> Fields:
  """A U-Net of one level over patches, for small data on a CPU [ours]."""
  return {
    "kind": "unet",
    "style": "film",
    "channels": channels,
    "multipliers": (1,),
    "num_blocks": 2,
    "patch": patch,
    "attention": (),
    "dropout": 0.0,
  }


# The depth, width and heads of each size in Peebles & Xie 2023 [mem].
DIT = {
  "S": (12, 384, 6),
  "B": (12, 768, 12),
  "L": (24, 1024, 16),
  "XL": (28, 1152, 16),
}


def dit_network(
  size: str,
  *,
  patch: int,
  remat: str = "none",
  dtype: str = "bfloat16",  # [ours]
) -> Fields:
  """A DiT of Peebles & Xie 2023: DiT-XL/2 has size "XL" and patch 2."""
  if size not in DIT:
    raise ValueError(f"size is {size!r}; pass one of {', '.join(DIT)}")
  depth, width, num_heads = DIT[size]
  return {
    "kind": "dit",
    "depth": depth,
    "width": width,
    "num_heads": num_heads,
    "patch": patch,
    "attention": "xla",
    "remat": remat,
    "dtype": dtype,
  }


def uvit_network(image_size: int) -> Fields:
  """The smaller UViT for ImageNet at 64x64 (394M) or 128x128 (397M) [MSCM].

  The larger UViTs have twice the channels, and dropout 0.1 in both transformer
  stages [MSCM].
  """
  sizes = (64, 128)
  if image_size not in sizes:
    raise ValueError(f"image_size is {image_size}; pass one of {sizes}")
  fields = {
    "kind": "uvit",
    "channels": (256, 512, 1024),
    "num_blocks": (3, 3, 16),
    "conv_stages": 1,
    "dropout": (0.0, 0.0, 0.2),
  }
  if image_size == 128:
    fields |= {
      "channels": (128, 256, 512, 1024),
      "num_blocks": (3, 3, 3, 16),
      "conv_stages": 2,
      "dropout": (0.0, 0.0, 0.0, 0.1),
    }
  return fields | {
    "head_dim": 128,  # [ours]
    "embed_dim": 1024,  # [ours]; gives the published parameter counts
    "attention": "xla",  # parameter_moment_matching needs its derivatives
    "remat": "all",  # [ours]
    "dtype": "bfloat16",  # [ours]
  }
