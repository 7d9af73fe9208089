"""The ground floor: errors, the event log, atomic writes, run folders. Standard library only."""
