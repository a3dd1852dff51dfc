"""Starts pretraining and fine-tuning on one machine or many; imports none of their internals."""
