"""The long-running probe: what it sees, how it counts, and how that is shown."""
