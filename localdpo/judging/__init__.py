"""Judges: who says which of two answers is better, or how good one is, and how they are asked."""
