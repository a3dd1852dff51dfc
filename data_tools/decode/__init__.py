"""Bytes → arrays, by extension, from an allow-list, with limits checked before anything large is allocated."""
