"""Encoders of text, one family a file."""
