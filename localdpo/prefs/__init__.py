"""Preference data: checking, cleaning, converting and labelling pairs. Checks read text and need no model."""
