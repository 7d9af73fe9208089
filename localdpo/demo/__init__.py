"""The demo: a small world of service incidents, a tiny chat model made for it, and the data to train on.

`build` rebuilds every file of `bundle/`.
"""

from localdpo.core.process import preload

preload()
