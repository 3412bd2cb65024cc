"""Setuptools, but that the list of what an sdist holds lies here: the top level has no room for it.

pyproject.toml names this as the build backend.
"""

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = "tools/sdist.in"  # in place of MANIFEST.in
