"""Which images there are, in which order they come, and their pixels."""
