"""What a run looks like: figures drawn with matplotlib, tables, and pages of HTML."""
