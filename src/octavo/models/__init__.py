"""Model families and where their weights come from."""
