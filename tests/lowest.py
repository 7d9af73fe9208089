"""Print the lowest versions that pyproject.toml allows, as pip's constraints: `python tests/lowest.py`.

The tools of `dev` are not among them: a user installs none.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *(line for name in ("cpu", "gguf") for line in extras[name])]:
    requirement = Requirement(line)
    for bound in requirement.specifier:
        print(f"{requirement.name}=={bound.version}")
