"""Whether training computes on this device what it computes on the CPU in float32.

`python -m localdpo.train.selfcheck` makes every check and prints a line of JSON before and after each, so
that whoever started it knows which one a crash of the device fell into; `localdpo doctor --check` reads them.
Everything is made of small random models and the bundled demo: nothing is downloaded, nothing is left.
"""
