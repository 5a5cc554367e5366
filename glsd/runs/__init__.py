"""What a run or a sweep is on disk: its directory, lease, logs, checkpoints and trials. Torch is imported late."""
