"""What is missing on this machine or in a cluster file's surroundings, and how to mend it. Changes nothing."""

from fabric.doctor.diagnosis import diagnose
from fabric.doctor.findings import Finding, Health

__all__ = ["Finding", "Health", "diagnose"]
