"""Shows runs to experiment trackers: Weights & Biases, TensorBoard, Trackio, MLflow.

What a tracker is shown is made from the run's event log alone, so a run can be shown while it trains and at
any time later, with the same result. A tracker's package is imported when it is opened.
"""
