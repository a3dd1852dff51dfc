"""A run → a folder that transformers opens, with its model card."""
