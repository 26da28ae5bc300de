"""Everything around the engine: CLI, backend, what must be there before, what an interrupted run left behind."""
