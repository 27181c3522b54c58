"""The architectures, and the only room that imports Flax's Linen.

A config names one of the modules in these tables and gives its fields; the
module is sealed into a `Network` (`LinenNetwork`) or a `Classifier`
(`LinenClassifier`), which is all that other rooms see.
"""

from diffdistill.networks.classifier import ResNet
from diffdistill.networks.dit import DiT
from diffdistill.networks.mlp import MLP
from diffdistill.networks.resnet import TorchResNet
from diffdistill.networks.song_unet import SongUNet
from diffdistill.networks.unet import UNet
from diffdistill.networks.uvit import UViT

NETWORKS = {
  "unet": UNet,
  "song_unet": SongUNet,
  "uvit": UViT,
  "dit": DiT,
  "mlp": MLP,
}
CLASSIFIERS = {"resnet": ResNet, "torch_resnet": TorchResNet}
