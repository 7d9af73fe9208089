"""What is on disk, typed: one reader and one writer for each kind of record of a run."""
