"""The checks of `prefs check`, by family. `localdpo.prefs.check` has their table."""
