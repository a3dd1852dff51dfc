"""A run, its folder, a dry run, and a step run again."""
