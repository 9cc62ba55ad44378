"""`training.integrations.ray`, under the name that it had until 0.2: here for one release."""

from training.integrations.ray import fit

__all__ = ["fit"]
