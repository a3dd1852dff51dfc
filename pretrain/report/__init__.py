"""report.html: what a run folder tells."""
