"""`training.integrations.huggingface`, under the name that it had until 0.2: here for one release."""

from training.integrations.huggingface import callback_of, train

__all__ = ["callback_of", "train"]
