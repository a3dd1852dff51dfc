"""Checkpoints: how they are saved and found valid, copied elsewhere, and read."""
