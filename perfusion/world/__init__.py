"""The sample marketplace: garments drawn from attributes, merchants with planted tastes, a known ceiling."""

from perfusion.world.corpus import captioned_pictures, corpus
from perfusion.world.garments import FAMILIES, FREE, STATED, render
from perfusion.world.judge import Reading
from perfusion.world.marketplace import Truth, load_truth, write_marketplace
from perfusion.world.picking import Utility
from perfusion.world.references import REFERENCES, reference_scores

__all__ = [
    "FAMILIES",
    "FREE",
    "REFERENCES",
    "STATED",
    "Reading",
    "Truth",
    "Utility",
    "captioned_pictures",
    "corpus",
    "load_truth",
    "reference_scores",
    "render",
    "write_marketplace",
]
