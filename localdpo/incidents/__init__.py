"""The task of the demo: incidents, their reports, and what an answer is worth. Standard library only."""
