"""How fast a run is, and where its time goes."""
