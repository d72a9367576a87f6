"""Datasets: the layout on disk, the filter, the split, users' features and the tables that models train on."""

from perfusion.data.corpus import Corpus

__all__ = ["Corpus"]
