"""Which sample stands at which position: arithmetic, no input or output."""
