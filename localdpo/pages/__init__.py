"""The pages room: self-contained HTML files. A page holds all it shows and asks no address for anything."""

from localdpo.pages.render import render, write_page

__all__ = ["render", "write_page"]
