"""Data: from a file or hub data set to token ids on disk and padded batches. No mlx in this room."""
