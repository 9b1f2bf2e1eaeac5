"""From a batch to tensors, a forward pass and samples."""
