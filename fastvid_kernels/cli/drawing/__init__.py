"""Pictures of what was kept."""
