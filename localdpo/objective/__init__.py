"""The objective: losses, metrics, KL and notices, as pure maths without files.

`options`, `registry` and `notices` need nothing but the standard library.
"""
