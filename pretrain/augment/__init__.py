"""Augmentation, one file a modality; random numbers come from the sample's own generator."""
