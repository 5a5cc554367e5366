"""HTML pages as such: blocks, tables, charts, style."""
