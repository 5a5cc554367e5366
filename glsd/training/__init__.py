"""Algorithm 1 as a program: batches, schedules, optimiser, state, step and loop."""
