"""Backbone f, heads h̄ and h, student and teacher, centres."""
