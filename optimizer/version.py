"""The version of this package."""

from __future__ import annotations


def package_version() -> str:
    """Give the installed version, or `0+unknown` in a checkout that nobody installed."""
    # Reading the metadata of a distribution costs more than all of `import optimizer`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llm-schedule-optimizer")
    except PackageNotFoundError:
        return "0+unknown"
