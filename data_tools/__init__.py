"""Raw files to shards to the i-th sample of a run; knows nothing of models."""
