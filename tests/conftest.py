"""Choose GPU or interpreter before any test module imports triton."""
from helpers import device  # noqa: F401
