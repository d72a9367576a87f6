"""Datasets: the layout on disk, the filter, the split, users' features and the tables that models train on."""

from perfusion.data.corpus import Corpus
from perfusion.data.features import FeatureEncoder
from perfusion.data.filtering import Filtered, filter_users
from perfusion.data.hashing import content_hash
from perfusion.data.layout import (
    GROUP_COLUMNS,
    Dataset,
    read_dataset,
    read_groups,
    read_users,
    write_dataset,
    write_table,
)
from perfusion.data.photographs import dataset_corpus
from perfusion.data.pictures import ImageStore, decode_image, decode_pixels, encode_png, is_safe_id
from perfusion.data.prompts import phrases, shuffle_phrases
from perfusion.data.splitting import SPLITS, split_dataset, split_records
from perfusion.data.statistics import table_one
from perfusion.data.tables import GroupTable, load_tables

__all__ = [
    "GROUP_COLUMNS",
    "SPLITS",
    "Corpus",
    "Dataset",
    "FeatureEncoder",
    "Filtered",
    "GroupTable",
    "ImageStore",
    "content_hash",
    "dataset_corpus",
    "decode_image",
    "decode_pixels",
    "encode_png",
    "filter_users",
    "is_safe_id",
    "load_tables",
    "phrases",
    "read_dataset",
    "read_groups",
    "read_users",
    "shuffle_phrases",
    "split_dataset",
    "split_records",
    "table_one",
    "write_dataset",
    "write_table",
]
