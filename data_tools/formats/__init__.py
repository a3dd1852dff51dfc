"""What lies on disk: tar archives, manifests, marks and sidecars."""
