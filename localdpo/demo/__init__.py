"""The demo: a small world of service incidents, a tiny chat model made for it, and the data to train on.

`world` and `rules` need nothing but the standard library; `build` makes every file of `bundle/` again.
"""

from localdpo.core.preload import preload

preload()
