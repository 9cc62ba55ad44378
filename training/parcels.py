"""A model's folder as one tar, to hand on through an archive: `fabric.parcels`, under the name that jobs know."""

from fabric.parcels import packed, unpacked

__all__ = ["packed", "unpacked"]
