"""The architectures, in the only package that imports Flax's Linen.

A config names one of the modules in these tables and gives its fields. A
`LinenNetwork` or a `LinenClassifier` wraps the module; other packages see only
these wrappers.
"""

from diffdistill.kinds import Kinds

NETWORKS = Kinds(
  __name__,
  {
    "unet": "unet:UNet",
    "song_unet": "song_unet:SongUNet",
    "uvit": "uvit:UViT",
    "dit": "dit:DiT",
    "mlp": "mlp:MLP",
  },
)
CLASSIFIERS = Kinds(
  __name__,
  {"resnet": "classifier:ResNet", "torch_resnet": "resnet:TorchResNet"},
)
