"""A loop's steps: data, batches, gradients and what is told of them."""
