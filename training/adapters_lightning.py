"""`training.integrations.lightning`, under the name that it had until 0.2: here for one release."""

from training.integrations.lightning import Resumable, callback_of, fit

__all__ = ["Resumable", "callback_of", "fit"]
