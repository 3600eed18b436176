"""Models that FastGen brings along."""
