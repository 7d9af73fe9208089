"""The Python API: what `import localdpo` offers. The commands of the program call the same code.

`localdpo.NAME` is looked up on first use (see `localdpo/__init__.py`); docs/api.md shows how it is used.
"""
