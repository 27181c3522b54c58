"""The published architectures of denoisers."""

from diffdistill.configs.recipes.stages import Fields


def ddpm_network(
  multipliers: tuple[int, ...],
  *,
  dropout: float,
  remat: bool = False,
  dtype: str = "float32",
) -> Fields:
  """The U-Net of Ho et al. 2020, as [DS code] and [CFD code] have it."""
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


# Depth, width and heads of Peebles & Xie 2023 [mem].
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
  remat: bool = False,
  dtype: str = "bfloat16",  # [ours]
) -> Fields:
  """The DiT of Peebles & Xie 2023 of a size of `DIT`: DiT-XL/2 has patch 2."""
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

  The larger ones have twice the channels, and dropout 0.1 in both stages of
  transformers [MSCM].
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
    "embed_dim": 1024,  # [ours], as the published numbers of parameters suggest
    "attention": "xla",  # has the derivative of parameter_moment_matching
    "remat": True,  # [ours]
    "dtype": "bfloat16",  # [ours]
  }
