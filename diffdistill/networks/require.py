"""Checks of a network's fields; a refusal names the field and its value."""

from collections.abc import Collection

from jaxtyping import Array, Float

from diffdistill.arrays import Label

Map = Float[Array, "b h w c"]
DTYPES = ("float32", "bfloat16")
# Attention can be computed by XLA on any platform, or by NVIDIA's fused kernel;
# "fused" means that kernel on NVIDIA GPUs, and XLA on other platforms.
ATTENTIONS = ("xla", "cudnn", "fused")


def require(condition: bool, message: str) -> None:
  """Raises ValueError(message) unless the condition holds."""
  if not condition:
    raise ValueError(message)


def require_known(name: str, value: object, known: Collection[object]) -> None:
  """Raises ValueError unless the value of a field is a known value."""
  require(
    value in known,
    f"{name} is {value!r}; pass one of {', '.join(map(str, known))}",
  )


def require_multipliers(multipliers: tuple[int, ...]) -> None:
  """Raises ValueError if there is no multiplier."""
  require(
    len(multipliers) > 0,
    f"multipliers is {multipliers}; pass one number for each level",
  )


def require_even(name: str, value: int) -> None:
  """Raises ValueError unless the value of a field is even."""
  require(value % 2 == 0, f"{name} is {value}; pass an even number")


def require_label(label: Label | None, num_classes: int) -> None:
  """Raises ValueError if labels are missing, or given without classes."""
  require(
    (label is None) == (num_classes == 0),
    f"label is {'None' if label is None else 'given'} but num_classes is"
    f" {num_classes}; pass labels exactly when num_classes > 0",
  )


def require_levels(x: Map, levels: int, attention: tuple[int, ...]) -> None:
  """Raises ValueError unless levels and attention heights fit the image.

  Args:
    x: the input.
    levels: the number of levels; each level but the first halves the image.
    attention: the heights at which the network has attention.
  """
  height, width = x.shape[1:3]
  divisor = 2 ** (levels - 1)
  require(
    height % divisor == 0 and width % divisor == 0,
    f"images of {height}x{width} do not halve {levels - 1} times for the"
    f" {levels} multipliers; pass sizes divisible by {divisor}",
  )
  heights = [height // 2**level for level in range(levels)]
  absent = [size for size in attention if size not in heights]
  require(
    not absent,
    f"attention at {absent} never occurs in images of height {height}; pass"
    f" some of {heights}",
  )


def require_precision(
  dtype: str, attention: str, name: str = "attention"
) -> None:
  """Raises ValueError unless both values are known and can be combined.

  Args:
    dtype: the dtype of the computation.
    attention: how attention is computed.
    name: the name of the field of `attention`.
  """
  require_known("dtype", dtype, DTYPES)
  require_known(name, attention, ATTENTIONS)
  require(
    attention == "xla" or dtype == "bfloat16",
    f"{name} is {attention!r}, which computes no {dtype}; pass"
    f" dtype='bfloat16' or {name}='xla'",
  )


def require_divisor(name: str, divisor: int, channels: int) -> None:
  """Raises ValueError unless the heads divide the channels."""
  require(
    channels % divisor == 0,
    f"{name} is {divisor}, but attention has {channels} channels; pass a"
    " divisor",
  )
