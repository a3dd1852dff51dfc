"""Self-supervised pretraining: an objective hides part of each sample, an encoder learns to see it."""
