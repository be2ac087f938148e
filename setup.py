"""What ``pyproject.toml`` cannot say: packages that are found, and two that come from elsewhere.

``models`` and ``experiments`` stand at the top of a checkout. In a wheel they are inside
``spr_or``, so that it takes no other name in site-packages.
"""

from setuptools import find_packages, setup

setup(
    packages=sorted({*find_packages(include=["spr_or*"]), "spr_or.models", "spr_or.shipped"}),
    package_dir={"spr_or.models": "models", "spr_or.shipped": "experiments"},
    package_data={
        "spr_or": ["py.typed"],
        "spr_or.shipped": [
            "recipes/*.toml",
            "tables/*.toml",
            "comparisons/*.toml",
            "reference/*.csv",
            "results/*/*",
        ],
    },
)
