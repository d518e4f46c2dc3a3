"""Coverage-guided fuzzing: what the inputs mean (targets), who makes them up (run), and those that once found something (found/)."""
