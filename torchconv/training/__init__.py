"""What `train.py` needs beside its loop: data, the run's folder and pictures."""

from importlib.util import find_spec


class UserError(Exception):
    """Something that the person who started the program can put right; its text is all that they are shown."""


def require(*modules: str) -> None:
    """Stop before any work if a library of the `train` extra is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"training needs {' and '.join(missing)}, not installed here: pip install -e '.[train]'")
