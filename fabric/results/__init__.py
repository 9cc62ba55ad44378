"""What a job returned or raised, on its way from the job to whoever reads it: as data wherever it can be.

Whoever unpickles runs what the other side chose. So plain values (numbers, text, bytes, containers, times, arrays, tensors)
and built-in exceptions travel as data, which is read without running anything; all else is a pickle that says so, and
is opened only where its reader may trust it: see `fabric.sdk.job`.
"""

from fabric.results.parcel import Parcel, ResultUnreadable, pack_error, pack_value, read_parcel, shown

__all__ = ["Parcel", "ResultUnreadable", "pack_error", "pack_value", "read_parcel", "shown"]
