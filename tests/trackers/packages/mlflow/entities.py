Metric = Param = None
