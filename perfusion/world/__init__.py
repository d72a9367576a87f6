"""The sample marketplace: garments drawn from attributes, merchants with planted tastes, a known ceiling."""

from perfusion.world.corpus import corpus
from perfusion.world.garments import FAMILIES, render

__all__ = ["FAMILIES", "corpus", "render"]
