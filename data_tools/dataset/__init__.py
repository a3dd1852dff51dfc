"""A data set: whatever a user names, as samples by index."""
