"""Checks that our DiT can represent a DiTTransformer2DModel's config.json."""

from typing import Any

from diffdistill.networks.layers import EPSILON

# The values that diffusers gives to the fields that a config leaves out.
DEFAULTS: dict[str, Any] = {
  "num_attention_heads": 16,
  "attention_head_dim": 72,
  "in_channels": 4,
  "out_channels": None,
  "num_layers": 28,
  "dropout": 0.0,
  "norm_num_groups": 32,  # ignored, because no layer uses it
  "attention_bias": True,
  "sample_size": 32,
  "patch_size": 2,
  "activation_fn": "gelu-approximate",
  "num_embeds_ada_norm": 1000,
  "upcast_attention": False,  # ignored, because our softmax is always float32
  "norm_type": "ada_norm_zero",
  "norm_elementwise_affine": False,
  "norm_eps": 1e-5,
}
SIZES = (
  "num_attention_heads",
  "attention_head_dim",
  "in_channels",
  "num_layers",
  "sample_size",
  "patch_size",
  "num_embeds_ada_norm",
)
# For each field, the values that our network can represent.
ALLOWED = {
  "dropout": (0,),
  "attention_bias": (True, False),
  "activation_fn": ("gelu-approximate",),
  "norm_type": ("ada_norm_zero",),
  "norm_elementwise_affine": (False,),
  # In the published weights, half of the norms have an epsilon of 1e-5. The
  # released code, like ours, has EPSILON in all norms. The variance is about
  # one, so both values give almost the same result.
  "norm_eps": (1e-5, EPSILON),
}


def checked(config: dict[str, Any]) -> dict[str, Any]:
  """Fills in the missing fields of a config.json and checks all values.

  Raises:
    ValueError: if a value cannot be represented; the message names its field.
  """
  for name, value in config.items():
    # Older configs also have fields of other transformers; their values must
    # switch these features off.
    if name not in DEFAULTS and not name.startswith("_") and value:
      raise ValueError(
        f"the transformer's {name} is {value!r}, which is no field of a"
        " DiTTransformer2DModel; pass a folder of one"
      )
  config = DEFAULTS | config
  for name in SIZES:
    if type(config[name]) is not int or config[name] < 1:
      raise ValueError(
        f"the transformer's {name} is {config[name]!r}; pass a folder where it"
        " is a whole number above 0"
      )
  channels, patch = config["in_channels"], config["patch_size"]
  for name, right, wanted in (
    *((k, config[k] in v, _either(v)) for k, v in ALLOWED.items()),
    (
      "out_channels",
      config["out_channels"] in (None, channels, 2 * channels),
      _either((channels, 2 * channels)),
    ),
    (
      "sample_size",
      config["sample_size"] % patch == 0,
      f"a multiple of its patch_size, {patch}",
    ),
    (
      "attention_head_dim",
      config["attention_head_dim"] * config["num_attention_heads"] % 4 == 0,
      "such that all heads have a multiple of 4",
    ),
  ):
    if not right:
      raise ValueError(
        f"the transformer's {name} is {config[name]!r}, which our DiT has not;"
        f" pass a folder where it is {wanted}"
      )
  return config


def _either(values: tuple[Any, ...]) -> str:
  return " or ".join(map(repr, values))
