"""Pages: allocation, sharing, prefix cache, eviction."""
