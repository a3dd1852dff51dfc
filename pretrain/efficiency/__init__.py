"""How fast a run is, against what its devices could do, and where the rest of the time goes."""
