"""What the papers promise, measured again: one module a claim, the engine that runs them, and the stored results."""
