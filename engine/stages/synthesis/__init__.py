"""Invert a teacher: from labels to images that it classifies so."""
