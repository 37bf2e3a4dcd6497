"""What the lessons share: references, exercise checks, drawing, and loading kernels from notebooks."""
