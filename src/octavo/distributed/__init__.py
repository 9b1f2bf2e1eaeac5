"""Between processes that share a model, over torch.distributed."""
