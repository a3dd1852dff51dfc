"""Starts pretraining and fine-tuning on one machine or many; imports nothing of them but how a mistake is told."""
