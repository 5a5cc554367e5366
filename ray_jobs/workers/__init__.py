"""Ray Train workers that consume one ordered stream of Ray Data."""
