"""Checkpoints that are whole or absent: shards first, one record last, verified before use, fenced against zombies."""

from fabric.checkpoints.bucket import S3Store
from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.cut import Cut
from fabric.checkpoints.directory import DirectoryStore
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.folders import commit_directory
from fabric.checkpoints.near import near_store
from fabric.checkpoints.records import Manifest, Shard
from fabric.checkpoints.stores import Store, store_of
from fabric.checkpoints.unpacking import is_of_folder, restore_directory
from fabric.checkpoints.watch import DraftedCut, Watch

__all__ = [
    "Checkpoints",
    "Cut",
    "DirectoryStore",
    "Draft",
    "DraftedCut",
    "Manifest",
    "S3Store",
    "Shard",
    "Store",
    "Watch",
    "commit_directory",
    "is_of_folder",
    "near_store",
    "restore_directory",
    "store_of",
]
