"""What the lessons share: references, exercise checks, drawing, and loading kernels from notebooks."""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent            # the course's folder
