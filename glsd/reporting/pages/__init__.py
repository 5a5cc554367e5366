"""The report's pages: of a run, an evaluation, a sweep."""
