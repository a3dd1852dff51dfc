"""What lies on disk: tar archives, manifests, sidecars, and what others keep beside their shards."""
