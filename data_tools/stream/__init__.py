"""Positions → samples → batches."""
