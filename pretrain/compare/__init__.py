"""`python -m pretrain compare`: which objective pays on somebody's own data, at the same budget for each."""
