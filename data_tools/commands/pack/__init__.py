"""Raw files → samples: one file a source, each a generator of (key, members)."""
