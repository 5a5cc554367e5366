"""Ray itself: starting it, its resources, its deaths, files on its nodes, what a job says."""
