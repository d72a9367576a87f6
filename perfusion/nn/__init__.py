"""The personalised plug-in's parts, shared by the reward model and the generator (Eq. 2-5).

`perfusion.nn.injection` is imported by its own name: it needs transformers, the rest needs torch alone.
"""

from perfusion.nn.adaptive import AdaptiveNetwork
from perfusion.nn.crossing import CrossNetwork, cross_layer
from perfusion.nn.embedding import FeatureEmbedding
from perfusion.nn.plugin import AdaptiveStack, PersonalPlugIn, UserEncoder

__all__ = [
    "AdaptiveNetwork",
    "AdaptiveStack",
    "CrossNetwork",
    "FeatureEmbedding",
    "PersonalPlugIn",
    "UserEncoder",
    "cross_layer",
]
