"""What keeps a run from being lost: signals, hangs, memory, spikes."""
